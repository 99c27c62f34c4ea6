"use strict";
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.firstElementChild.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const numeric = head.classList.contains("n");
      const keyed = [...body.rows].map((row) => {
        const cell = row.cells[column];
        const key = cell.dataset.k;
        return [numeric || key !== undefined ? (key === undefined ? null : Number(key)) : cell.textContent, row];
      });
      const compare = (a, b) => (typeof a === "number" ? a - b : a < b ? -1 : a > b ? 1 : 0);
      // cells without a value stay last, whichever way the column is sorted
      keyed.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null) : (down ? -1 : 1) * compare(a, b));
      body.append(...keyed.map(([, row]) => row));
    });
  });
}
for (const input of document.querySelectorAll("input[data-table]")) {
  const table = document.getElementById(input.dataset.table);
  const count = document.getElementById(input.dataset.table.replace("-table", "-count"));
  const words = (row) => [...row.cells].map((cell) => cell.textContent.toLowerCase()).join(" ");
  const rows = [...table.tBodies[0].rows].map((row) => [row, words(row)]);
  input.addEventListener("input", () => {
    const wanted = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const [row, text] of rows) {
      row.hidden = !wanted.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    const of = shown === rows.length ? "" : `${shown} of `;
    count.textContent = `${of}${rows.length} ${rows.length === 1 ? "row" : "rows"}`;
  });
}
