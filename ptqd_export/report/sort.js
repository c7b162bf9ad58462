// Every heading of a sortable table becomes a button: ascending, then descending. Cells without a figure stay at the end.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.key;
      const present = [...body.rows].filter((row) => key(row) !== undefined);
      const absent = [...body.rows].filter((row) => key(row) === undefined);
      const numbers = present.every((row) => row.cells[column].classList.contains("number"));
      const order = numbers
        ? (one, other) => Number(key(one)) - Number(key(other))
        : (one, other) => key(one).localeCompare(key(other), "en", { numeric: true });
      body.append(...present.sort((one, other) => sign * order(one, other)), ...absent);
    });
  });
}
