"use strict";
(() => {
  const picture = document.getElementById("picture"), search = document.getElementById("search");
  const found = document.getElementById("found"), hint = document.getElementById("hint");
  const whole = picture.dataset.box.trim().split(/\s+/).map(Number);
  const tables = new Map([...picture.querySelectorAll(".table")].map((table) => [table.id, table]));
  const references = [...picture.querySelectorAll(".reference")];
  const items = [...document.querySelectorAll("#tables li")];
  const sections = [...document.querySelectorAll("aside section")];
  let view = [...whole], chosen = "", hits = [], hit = -1;

  const scale = () => Math.min(picture.clientWidth / view[2], picture.clientHeight / view[3]) || 1;
  const show = () => {
    picture.setAttribute("viewBox", view.join(" "));
    picture.classList.toggle("afar", scale() < 0.38);  // where rows could not be read, names stand alone
  };
  // The box of the view has the shape of the window, so that a point of one is a point of the other.
  const shaped = (x, y, width, height) => {
    const shape = picture.clientWidth / picture.clientHeight || 1.5;
    const wide = Math.max(width, height * shape), high = wide / shape;
    view = [x + (width - wide) / 2, y + (height - high) / 2, wide, high];
    show();
  };
  const fit = () => shaped(...whole);
  const zoom = (factor, x = view[0] + view[2] / 2, y = view[1] + view[3] / 2) => {
    const limit = Math.max(whole[2], whole[3]) * 3, wide = Math.min(Math.max(view[2] * factor, 150), limit);
    const by = wide / view[2];
    view = [x - (x - view[0]) * by, y - (y - view[1]) * by, wide, view[3] * by];
    show();
  };
  const move = (dx, dy) => { view = [view[0] + dx, view[1] + dy, view[2], view[3]]; show(); };
  const point = (event) => {
    const box = picture.getBoundingClientRect();
    return [view[0] + (event.clientX - box.left) / box.width * view[2], view[1] + (event.clientY - box.top) / box.height * view[3]];
  };

  // Bring a table to the middle, large enough to be read.
  const centre = (table) => {
    const box = table.getBBox(), at = table.transform.baseVal.consolidate().matrix;
    const wide = Math.min(view[2], picture.clientWidth / 0.85), high = wide * view[3] / view[2];
    view = [at.e + box.width / 2 - wide / 2, at.f + box.height / 2 - high / 2, wide, high];
    show();
  };

  const choose = (id, jump = true) => {
    const table = tables.get(id);
    chosen = table ? id : "";
    picture.classList.toggle("choosing", Boolean(table));
    for (const each of tables.values()) each.classList.remove("chosen", "near");
    for (const line of references) {
      const near = Boolean(table) && (line.dataset.from === id || line.dataset.to === id);
      line.classList.toggle("near", near);
      if (near) for (const end of [line.dataset.from, line.dataset.to]) tables.get(end).classList.add("near");
    }
    for (const section of sections) section.hidden = section.dataset.of !== id;
    hint.hidden = Boolean(table);
    for (const item of items) {
      const link = item.firstElementChild, is = link.hash === "#/" + id;
      if (is) { link.setAttribute("aria-current", "true"); link.scrollIntoView({ block: "nearest" }); }
      else link.removeAttribute("aria-current");
    }
    if (!table) return;
    table.classList.add("chosen", "near");
    if (jump) centre(table);
  };

  const follow = () => {
    const id = location.hash.slice(2);
    if (tables.has(id)) { choose(id); tables.get(id).focus({ preventScroll: true }); }
  };
  const go = (id) => { if (location.hash !== "#/" + id) history.pushState(null, "", "#/" + id); follow(); };

  const look = () => {
    const words = search.value.trim().toLowerCase();
    hits = [];
    for (const item of items) {
      const is = item.dataset.words.includes(words), id = item.firstElementChild.hash.slice(2);
      item.hidden = !is;
      tables.get(id).classList.toggle("hit", Boolean(words) && is);
      if (words && is) hits.push(id);
    }
    // A name that is, begins with or holds the words comes before a table with such a column.
    const rank = (id) => {
      const name = tables.get(id).dataset.table.toLowerCase();
      return name === words ? 0 : name.startsWith(words) ? 1 : name.includes(words) ? 2 : 3;
    };
    hits.sort((a, b) => rank(a) - rank(b));
    picture.classList.toggle("searching", Boolean(words));
    found.textContent = words ? (hits.length === 1 ? "1 table" : hits.length + " tables") : "";
    hit = -1;
  };
  const letGo = () => { search.value = ""; look(); choose(""); history.replaceState(null, "", location.pathname + location.search); };

  search.addEventListener("input", look);
  search.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !hits.length) return;
    hit = (hit + (event.shiftKey ? hits.length - 1 : 1)) % hits.length;
    const id = hits[hit];
    choose(id);
    history.replaceState(null, "", "#/" + id);
  });
  // From a chosen table along its references, one after the other; back with the other key.
  const along = (step) => {
    const ends = references.filter((line) => line.dataset.from === chosen || line.dataset.to === chosen)
      .map((line) => line.dataset.from === chosen ? line.dataset.to : line.dataset.from);
    const near = [...new Set(ends)].filter((id) => id !== chosen);
    if (near.length) go(near[step > 0 ? 0 : near.length - 1]);
  };
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { letGo(); return; }
    if (event.target === search || event.ctrlKey || event.metaKey || event.altKey) return;
    const far = view[2] / 10;
    const does = {
      "/": () => search.focus(), "+": () => zoom(0.8), "=": () => zoom(0.8), "-": () => zoom(1.25), "0": fit,
      "[": () => along(-1), "]": () => along(1),
      ArrowLeft: () => move(-far, 0), ArrowRight: () => move(far, 0), ArrowUp: () => move(0, -far), ArrowDown: () => move(0, far),
      Enter: () => { const table = event.target.closest && event.target.closest(".table"); if (table) go(table.id); return !table; },
      " ": () => { const table = event.target.closest && event.target.closest(".table"); if (table) go(table.id); return !table; },
    }[event.key];
    const scrolls = event.key.startsWith("Arrow") && !event.target.closest("main") && event.target !== document.body;
    if (does && !scrolls && does() !== true) event.preventDefault();
  });

  let start = null, moved = false;
  picture.addEventListener("pointerdown", (event) => {
    if (event.button === 0) { start = [event.clientX, event.clientY]; moved = false; }
  });
  picture.addEventListener("pointermove", (event) => {
    if (!start) return;
    const dx = event.clientX - start[0], dy = event.clientY - start[1];
    if (!moved && Math.hypot(dx, dy) < 4) return;
    if (!moved) { moved = true; picture.setPointerCapture(event.pointerId); picture.classList.add("moving"); }
    move(-dx / scale(), -dy / scale());
    start = [event.clientX, event.clientY];
  });
  for (const end of ["pointerup", "pointercancel"]) picture.addEventListener(end, () => { start = null; picture.classList.remove("moving"); });
  picture.addEventListener("click", (event) => {
    if (moved) { moved = false; return; }
    const table = event.target.closest(".table"), line = event.target.closest(".reference");
    if (table) { choose(table.id, false); history.replaceState(null, "", "#/" + table.id); }
    // A line leads to its other end, seen from the chosen table; else to the table that it refers to.
    else if (line) go(line.dataset.to === chosen ? line.dataset.from : line.dataset.to);
    else choose("");
  });
  picture.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(Math.min(Math.max(event.deltaY, -100), 100) / 400), ...point(event));
  }, { passive: false });
  document.getElementById("in").addEventListener("click", () => zoom(0.8));
  document.getElementById("out").addEventListener("click", () => zoom(1.25));
  document.getElementById("fit").addEventListener("click", fit);
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#/']");
    if (link) { event.preventDefault(); go(link.hash.slice(2)); picture.scrollIntoView({ block: "nearest" }); }
  });
  addEventListener("hashchange", follow);
  addEventListener("resize", () => shaped(...view));
  // On paper nothing can be opened: the SQL of all differences is there.
  let opened = [];
  addEventListener("beforeprint", () => { opened = [...document.querySelectorAll("details:not([open])")]; for (const each of opened) each.open = true; });
  addEventListener("afterprint", () => { for (const each of opened) each.open = false; });
  addEventListener("beforeprint", () => { picture.setAttribute("viewBox", whole.join(" ")); picture.classList.remove("afar"); });
  addEventListener("afterprint", show);
  fit();
  follow();
})();
