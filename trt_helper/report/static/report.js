"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const layers = data.layers;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const views = {};
  const state = { query: "", chosen: -1, relative: false, domain: null };
  const ROWS = 100;
  let visible = ROWS;

  const config = () => {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name).trim();
    const text = color("--text"), soft = color("--soft"), line = color("--line");
    return {
      background: "transparent",
      font: "system-ui, sans-serif",
      view: { stroke: line },
      axis: { labelColor: soft, titleColor: text, gridColor: line, gridOpacity: 0.6, domainColor: line, tickColor: line, titleFontWeight: "normal" },
      legend: { labelColor: text, titleColor: text, labelFontSize: 12 },
    };
  };

  async function draw(key) {
    const { spec, rows } = data.figures[key];
    views[key]?.finalize();
    const filled = { ...spec, data: { values: typeof rows === "string" ? data[rows] : rows } };
    const options = { actions: false, renderer: "canvas", config: config(), expressionFunctions: { same: (text) => text }, tooltip: { theme: dark.matches ? "dark" : "light" } };
    const result = await vegaEmbed(document.getElementById(key), filled, options);
    views[key] = result.view;
    if (has(key, "zoom")) {
      for (const name of ["query", "chosen", "relative"]) result.view.signal(name, state[name]);
      if (state.domain) result.view.signal("zoom_i", state.domain);
      await result.view.runAsync();
      result.view.addSignalListener("zoom_i", (_, domain) => follow(key, domain));
    }
  }

  const has = (key, name) => (data.figures[key].spec.layer || []).some((l) => (l.params || []).some((p) => p.name === name));
  const zoomed = () => Object.keys(views).filter((key) => has(key, "zoom"));

  function follow(from, domain) {
    const seen = domain && domain.length === 2 ? [domain[0], domain[1]] : null;
    if (JSON.stringify(seen) === JSON.stringify(state.domain)) return;
    state.domain = seen;
    for (const key of zoomed()) {
      if (key !== from) views[key].signal("zoom_i", state.domain).runAsync();
    }
  }

  function set(name, value) {
    state[name] = value;
    for (const key of zoomed()) views[key].signal(name, value).runAsync();
  }

  function look(low, high) {
    const last = layers.length - 1;
    const width = Math.min(Math.max(high - low, 4), last);
    const start = Math.min(Math.max(low, 0), last - width);
    state.domain = width >= last ? null : [start, start + width];
    for (const key of zoomed()) views[key].signal("zoom_i", state.domain).runAsync();
  }

  const figure = (number) => (number === null ? "not finite" : number === 0 ? "0" : Number(number.toPrecision(3)).toString());

  const matching = () => {
    const query = state.query.toLowerCase();
    return query ? layers.filter((row) => `${row.name} ${row.module} ${row.op}`.toLowerCase().includes(query)) : layers;
  };

  function table() {
    const body = document.querySelector("#layers tbody");
    if (!body) return;
    const found = matching();
    document.getElementById("count").textContent = `${found.length} of ${layers.length}`;
    document.getElementById("more").hidden = found.length <= visible;
    body.replaceChildren(...found.slice(0, visible).map((row) => {
      const line = document.createElement("tr");
      line.className = row.i === state.chosen ? "chosen" : "";
      line.tabIndex = 0;
      const bad = (count, value) => (count ? `${count} not finite` : figure(value));
      const cells = [
        [row.i, "n"], [row.module ? `${row.name} (${row.module})` : row.name, "name"], [row.op, ""],
        [bad(row.arrives_bad, row.arrives), "n"], [bad(row.adds_bad, row.adds), "n"],
        [figure(row.read), "n"], [figure(row.written), "n"], [row.why, ""], [row.kind === "pinned" ? "FP32" : "", ""],
      ];
      for (const [text, style] of cells) {
        const cell = document.createElement("td");
        cell.className = style;
        const isolated = document.createElement("bdi");
        isolated.textContent = text;
        cell.append(isolated);
        line.append(cell);
      }
      const choose = () => {
        set("chosen", row.i);
        if (layers.length > 60) look(row.i - 25, row.i + 25);
        table();
      };
      line.addEventListener("click", choose);
      line.addEventListener("keydown", (event) => { if (event.key === "Enter") choose(); });
      return line;
    }));
  }

  document.getElementById("query")?.addEventListener("input", (event) => {
    visible = ROWS;
    set("query", event.target.value.trim());
    table();
    if (state.query) document.getElementById("layers-details").open = true;
  });
  document.getElementById("relative")?.addEventListener("change", (event) => set("relative", event.target.checked));
  document.getElementById("more")?.addEventListener("click", () => { visible += 10 * ROWS; table(); });
  for (const button of document.querySelectorAll("[data-zoom], [data-move]")) {
    button.addEventListener("click", () => {
      const [low, high] = state.domain || [0, layers.length - 1];
      if (button.dataset.zoom === "all") return look(0, layers.length - 1);
      if (button.dataset.move) return look(low + button.dataset.move * (high - low), high + button.dataset.move * (high - low));
      const half = (button.dataset.zoom * (high - low)) / 2;
      look((low + high) / 2 - half, (low + high) / 2 + half);
    });
  }

  const drawAll = async () => {
    for (const key of Object.keys(data.figures)) await draw(key);
    document.documentElement.dataset.drawn = Object.keys(data.figures).length;
  };
  dark.addEventListener("change", drawAll);
  table();
  drawAll();
})();
