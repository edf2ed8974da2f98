"use strict";
// Sorting: a click on a heading sorts by the cells' own numbers, else by their text.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const heading = button.closest("th");
    const table = heading.closest("table");
    const column = [...heading.parentElement.children].indexOf(heading);
    const order = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const body = table.tBodies[0];
    const value = (row) => row.cells[column].dataset.sort;
    const text = (row) => row.cells[column].textContent.trim();
    const compare = (one, two) => {
      const [first, second] = [value(one), value(two)];
      if (first !== undefined && second !== undefined) return sign * (first - second);
      if (first !== undefined || second !== undefined) return first === undefined ? 1 : -1;
      return sign * text(one).localeCompare(text(two));
    };
    body.append(...[...body.rows].sort(compare));
  });
}
// Filtering: rows that hold every word that was typed.
for (const input of document.querySelectorAll("input[data-table]")) {
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/);
    for (const row of document.getElementById(input.dataset.table).tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
}
// The contents: open beside the page, folded above it; the section in view is marked.
const contents = document.querySelector("nav details");
const beside = window.matchMedia("(min-width: 70rem)");
const unfold = () => { contents.open = beside.matches; };
beside.addEventListener("change", unfold);
unfold();
contents.addEventListener("click", (event) => {
  if (event.target.closest("a") && !beside.matches) contents.open = false;
});
const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
const observer = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    for (const link of links.values()) link.removeAttribute("aria-current");
    links.get(entry.target.id)?.setAttribute("aria-current", "true");
  }
}, { rootMargin: "0px 0px -75% 0px" });
for (const section of document.querySelectorAll("main section[id]")) observer.observe(section);
// On paper everything is unfolded but what would fill pages and stands in a file.
window.addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("main details:not([data-folded])")) folded.open = true;
});
