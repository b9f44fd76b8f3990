// Tables that sort by a click on a heading, and filter by the fields below the headings.
"use strict";

const text = (row, column) => row.cells[column].textContent;

// Numbers come first, in their order; then words; empty fields are last, whichever way the column is sorted.
function compare(one, other, sign) {
  if (one === "" || other === "") return (one === "") - (other === "");
  const numbers = [Number(one), Number(other)];
  const isNumber = numbers.map((number) => !Number.isNaN(number));
  if (isNumber[0] && isNumber[1]) return sign * (numbers[0] - numbers[1]);
  if (isNumber[0] !== isNumber[1]) return sign * (isNumber[1] - isNumber[0]);
  return sign * one.localeCompare(other);
}

// "=word": that word; ">2", "<=0.5": numbers; all else: a part of the field.
function matches(field, wanted) {
  if (wanted === "") return true;
  if (wanted.startsWith("=")) return field === wanted.slice(1);
  const bound = /^([<>]=?)\s*(-?[\d.]+)$/.exec(wanted.trim());
  if (!bound) return field.toLowerCase().includes(wanted.trim().toLowerCase());
  if (field === "" || Number.isNaN(Number(field))) return false;
  const difference = Number(field) - Number(bound[2]);
  return bound[1].startsWith(">") ? difference > 0 || (difference === 0 && bound[1] === ">=")
    : difference < 0 || (difference === 0 && bound[1] === "<=");
}

for (const section of document.querySelectorAll("section")) {
  const body = section.querySelector("tbody");
  if (!body) continue;
  const headings = [...section.querySelectorAll("th")];
  const filters = [...section.querySelectorAll(".filters td > *")];
  const rows = [...body.rows];

  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const rises = heading.getAttribute("aria-sort") !== "ascending";
      for (const each of headings) each.setAttribute("aria-sort", "none");
      heading.setAttribute("aria-sort", rises ? "ascending" : "descending");
      const sign = rises ? 1 : -1;
      body.append(...rows.sort((one, other) => compare(text(one, column), text(other, column), sign)));
    });
  });

  const filter = () => {
    let shown = 0;
    for (const row of rows) {
      row.hidden = !filters.every((field, column) => matches(text(row, column), field.value));
      shown += !row.hidden;
    }
    section.querySelector(".count").textContent = `${shown} of ${rows.length} rows`;
  };
  for (const field of filters) field.addEventListener("input", filter);
}
