// Sorting and filtering of the table of layers; the page is complete without it.
"use strict";
(function () {
  const table = document.getElementById("layers-table");
  const body = table.tBodies[0];
  const heads = Array.from(table.tHead.rows[0].cells);
  const rows = Array.from(body.rows);
  const words = new Intl.Collator(undefined, { numeric: true });

  function value(row, column) {
    const cell = row.cells[column];
    if (!("value" in cell.dataset)) {
      return cell.textContent.trim();
    }
    return cell.dataset.value === "" ? null : Number(cell.dataset.value);
  }

  // What is undefined stays at the end, whatever the direction; equals keep the order they had.
  function sort(column, falling) {
    const sign = falling ? -1 : 1;
    rows.sort(function (a, b) {
      const x = value(a, column), y = value(b, column);
      if (x === null || y === null) {
        return (x === null) - (y === null);
      }
      return sign * (typeof x === "string" ? words.compare(x, y) : (x > y) - (x < y));
    });
    body.append(...rows);
    heads.forEach(function (head, index) {
      if (index === column) {
        head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      } else {
        head.removeAttribute("aria-sort");
      }
    });
  }

  heads.forEach(function (head, column) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", function () {
      sort(column, head.getAttribute("aria-sort") === "ascending");
    });
  });

  const tools = document.getElementById("tools");
  const input = document.getElementById("filter");
  const count = document.getElementById("count");
  function filter() {
    const parts = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach(function (row) {
      const text = row.textContent.toLowerCase();
      const wanted = parts.every(function (part) { return text.includes(part); });
      row.hidden = !wanted;
      shown += wanted;
    });
    count.textContent = shown + " of " + rows.length + " rows";
  }
  input.addEventListener("input", filter);
  tools.hidden = false;
  filter();
})();
