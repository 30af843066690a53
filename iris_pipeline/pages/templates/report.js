"use strict";
(() => {
  const page = document.documentElement;
  page.classList.add("js");
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // Theme: what the system prefers, until the reader says otherwise.
  const theme = document.getElementById("theme");
  const themes = ["auto", "light", "dark"];
  const remember = (value) => { try { localStorage.setItem("iris-theme", value); } catch { /* not allowed here */ } };
  const recall = () => { try { return localStorage.getItem("iris-theme"); } catch { return null; } };
  const setTheme = (value) => {
    if (value === "auto") delete page.dataset.theme; else page.dataset.theme = value;
    theme.textContent = `Theme: ${value}`;
    theme.dataset.value = value;
  };
  setTheme(themes.includes(recall()) ? recall() : "auto");
  theme.addEventListener("click", () => {
    const next = themes[(themes.indexOf(theme.dataset.value) + 1) % themes.length];
    setTheme(next);
    remember(next);
  });

  // Contents: folded away on small screens; the section being read is marked.
  const contents = document.querySelector("nav details");
  const small = matchMedia("(max-width: 63.99rem)");
  const fold = () => { contents.open = !small.matches; };
  fold();
  small.addEventListener("change", fold);
  const links = new Map(all("nav a").map((link) => [link.hash.slice(1), link]));
  for (const link of links.values()) link.addEventListener("click", () => { if (small.matches) contents.open = false; });
  const seen = new Set();
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) entry.isIntersecting ? seen.add(entry.target.id) : seen.delete(entry.target.id);
    const current = all("section[id]").find((section) => seen.has(section.id));
    for (const [id, link] of links) {
      if (current && id === current.id) link.setAttribute("aria-current", "true"); else link.removeAttribute("aria-current");
    }
  }, { rootMargin: "-64px 0px -55% 0px" });
  for (const section of all("section[id]")) watcher.observe(section);

  // Tables: a column's head sorts by it; numbers as numbers, gaps last.
  const key = (row, column) => {
    const text = row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
    const number = Number.parseFloat(text);
    return text === "" ? null : /^[-+]?[\d.]/.test(text) && !Number.isNaN(number) ? number : text.toLowerCase();
  };
  const order = (a, b) => {
    if (typeof a === typeof b) return a < b ? -1 : a > b ? 1 : 0;
    return typeof a === "number" ? -1 : 1;
  };
  for (const head of all("table.sortable thead th")) {
    const sort = () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const body = head.closest("table").tBodies[0];
      const rows = [...body.rows].map((row) => [key(row, head.cellIndex), row]);
      rows.sort(([a], [b]) => (a === null) - (b === null) || (up ? order(a, b) : order(b, a)));
      body.append(...rows.map(([, row]) => row));
    };
    head.classList.add("sorts");
    head.tabIndex = 0;
    head.title = "Sort by this column";
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(); }
    });
  }

  // Pictures: each layer can be hidden, and outlines coloured by truth and prediction or by class.
  for (const button of all("button[data-layer]")) {
    button.addEventListener("click", () => {
      const name = button.dataset.layer;
      const on = page.classList.toggle(name);
      const pressed = name.startsWith("no-") ? !on : on;
      for (const same of all(`button[data-layer="${name}"]`)) same.setAttribute("aria-pressed", pressed);
    });
  }

  // Map: pointing at a class in the table shows it in the maps.
  for (const row of all("tr[data-place]")) {
    const light = (on) => {
      for (const maps of all(".maps")) maps.classList.toggle("lighting", on);
      for (const mark of all(`.maps [data-place="${row.dataset.place}"]`)) mark.classList.toggle("lit", on);
    };
    row.tabIndex = 0;
    for (const [event, on] of [["mouseenter", true], ["mouseleave", false], ["focus", true], ["blur", false]]) {
      row.addEventListener(event, () => light(on));
    }
  }
})();
