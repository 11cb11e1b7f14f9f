"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const value = (cell) => {
    const number = Number.parseFloat(cell.dataset.value ?? "");
    return Number.isNaN(number) ? null : number;
  };
  const compare = (a, b, column, sign) => {
    const [x, y] = [a.cells[column], b.cells[column]];
    const [p, q] = [value(x), value(y)];
    if (p !== null && q !== null) return sign * (p - q);
    if (p !== null || q !== null) return p !== null ? -1 : 1; // what is not known comes last
    return sign * x.textContent.trim().localeCompare(y.textContent.trim(), "en", { numeric: true });
  };
  document.querySelectorAll("table.sortable").forEach((table) => {
    const body = table.tBodies[0];
    table.querySelectorAll("button.sort").forEach((button) => button.addEventListener("click", () => {
      const head = button.closest("th");
      const ascending = head.getAttribute("aria-sort") !== "ascending";
      table.querySelectorAll("th[aria-sort]").forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const rows = [...body.rows];
      rows.sort((a, b) => compare(a, b, head.cellIndex, ascending ? 1 : -1));
      body.append(...rows);
    }));
  });

  const overlay = document.getElementById("overlay");
  const pictured = (name, picture) => {
    const figure = document.createElement("figure");
    const image = document.createElement("img");
    const caption = document.createElement("figcaption");
    [image.src, image.alt] = [picture.uri, picture.alt];
    caption.textContent = `${name}: ${picture.alt}`;
    figure.append(image, caption);
    return figure;
  };
  const show = (button) => {
    const name = button.textContent.trim();
    const found = data.images[button.dataset.key] ?? [];
    document.querySelectorAll("tr.chosen").forEach((row) => row.classList.remove("chosen"));
    button.closest("tr").classList.add("chosen");
    document.querySelectorAll("button.case").forEach((b) => b.setAttribute("aria-pressed", String(b === button)));
    overlay.replaceChildren(...found.map((each) => pictured(name, each)));
    if (!found.length) overlay.textContent = `${name}: there is no picture of this case.`;
  };
  const buttons = [...document.querySelectorAll("button.case")];
  buttons.forEach((button) => button.addEventListener("click", () => show(button)));
  if (buttons.length) show(buttons[0]);
})();
