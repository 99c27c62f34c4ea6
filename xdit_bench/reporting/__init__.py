"""Turns records into pages, figures, tables and comparisons. Never imports torch: a report is rebuilt on a laptop.

study.py       records as a report reads them: entries, groups that may share a curve, baselines, best
answer.py      the three sentences, banners and warnings at the head of a report
published.py   published points and the points of ours that stand beside them
style.py       every colour, size and format of a figure
figures.py     which figures a group has; draw_scaling.py and draw_parts.py draw them
tables.py      the tables as data, for HTML and Markdown alike
exports.py     CSV, Parquet and JUnit XML
page.py        the folder of a report: report.md, index.html, figures, exports
comparison.py  two sets of records, a verdict per point
"""
