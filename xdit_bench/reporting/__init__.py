"""Turns records into pages, figures, tables and comparisons. Never imports torch: a report is rebuilt on a laptop.

entry.py       one record, its numbers made safe and its success judged
study.py       groups that may share a curve, baselines, best, speedups
frontier.py    the largest image that fits, as the records say
answer.py      the three sentences, banners and warnings at the head of a report
words.py       how numbers, sizes and machines read
peers.py       our engine beside its peers: ratios, and the bounds of a sweep file
decode_table.py  the decode by VAE mode: seconds, memory beyond the weights, distance from plain diffusers' image
ladder.py      our engine rung by rung: what each gain saved, and was predicted to; ladder_tables.py as tables
published.py   published points and the points of ours that stand beside them
spent.py       where the wall time of measured points went; outliers.py the images that took too long
style.py       every colour, size and format of a figure; marks.py the pieces that figures share
figures.py     which figures a group has, and their captions; alternatives.py says each in words
draw_*.py      the drawing: headline, scaling, parts of a point, peers, ladder, OOM frontier, comparison
inline.py      a figure made fit for a page: light, dark and phone
pictures.py    figures drawn into their files, over all cores
images.py      images of real weights side by side
tables.py      the tables as data, for HTML and Markdown alike; cells.py what they are made of
exports.py     CSV, Parquet and JUnit XML
page.py        the folder of a report: report.md, index.html, figures, exports
comparison.py  two sets of records, a verdict per point
"""
