// Unfolds and folds modules: places the sheet's cells anew and draws them, by the rules of layout.py and draw.py.
"use strict";
(() => {
  const { sheet, opened: atFirst, rules: R } = JSON.parse(document.getElementById("data").textContent);
  const opened = new Set(atFirst);
  const main = document.querySelector("main");
  const sum = (values) => values.reduce((a, b) => a + b, 0);
  const esc = (text) => String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
  const f = (v) => v.toFixed(1);

  // ---- layout.py: place

  function settle(layer, sizes, x, wishes) {
    const offsets = [], blocks = [];
    let offset = 0;
    layer.forEach((cell, k) => {
      if (k) offset += (sizes[layer[k - 1]][0] + sizes[cell][0]) / 2 + R.GAP;
      offsets.push(offset);
      const [wish, weight] = wishes.get(cell);
      blocks.push([weight * (wish - offset), weight, 1]);
      while (blocks.length > 1) {
        const a = blocks[blocks.length - 2], b = blocks[blocks.length - 1];
        if (!(a[0] * b[1] > b[0] * a[1])) break;
        blocks.pop();
        for (let i = 0; i < 3; i++) a[i] += b[i];
      }
    });
    let k = 0;
    for (const [total, weight, count] of blocks)
      for (let i = 0; i < count; i++, k++) x[layer[k]] = total / weight + offsets[k];
  }

  function spines(chains, port) {
    const outs = new Map(), ins = new Map(), after = new Map(), ends = new Set();
    const count = (map, key) => map.set(key, (map.get(key) || 0) + 1);
    const short = chains.map((_, e) => e).filter((e) => chains[e].length === 3);
    for (const e of short) { count(outs, chains[e][0]); count(ins, chains[e][2]); }
    for (const e of short)
      if (outs.get(chains[e][0]) === 1 && ins.get(chains[e][2]) === 1) { after.set(chains[e][0], e); ends.add(chains[e][2]); }
    return [...after.keys()].filter((cell) => !ends.has(cell)).sort((a, b) => a - b).map((cell) => {
      const spine = [[cell, 0]];
      while (after.has(cell)) {
        const e = after.get(cell), out = spine[spine.length - 1][1] + port(e, 0);
        spine.push([chains[e][1], out], [chains[e][2], out - port(e, 1)]);
        cell = chains[e][2];
      }
      return spine;
    });
  }

  function place({ layers, chains, cells }, size, port) {
    const sizes = cells.map((_, cell) => size(cell));
    const x = cells.map(() => 0), y = cells.map(() => 0), spans = [];
    let top = 0;
    for (const layer of layers) {
      const height = Math.max(0, ...layer.map((cell) => sizes[cell][1]));
      for (const cell of layer) y[cell] = top + height / 2;
      spans.push([top, top + height]);
      top += height + R.BETWEEN;
    }
    const pulls = cells.map(() => []), row = [];
    layers.forEach((layer, i) => layer.forEach((cell) => { row[cell] = i; }));
    chains.forEach((chain, e) => {
      for (let k = 0; k + 1 < chain.length; k++) {
        const [a, b] = [chain[k], chain[k + 1]];
        const weight = k > 0 && k < chain.length - 2 ? R.STRAIGHT : chain.length === 3 ? R.SHORT : R.LONG;
        const shift = (k === 0 ? port(e, 0) : 0) - (k === chain.length - 2 ? port(e, 1) : 0);
        pulls[b].push([a, shift, weight]);
        pulls[a].push([b, -shift, weight]);
      }
    });
    for (const layer of layers) settle(layer, sizes, x, new Map(layer.map((cell) => [cell, [0, 1]])));
    for (let sweep = 0; sweep < 4 * R.SWEEPS; sweep++) {
      const both = sweep >= 2 * R.SWEEPS, down = sweep % 2 === 0;
      for (const layer of down ? layers : [...layers].reverse()) {
        const wishes = new Map();
        for (const cell of layer) {
          const near = pulls[cell].filter(([other]) => both || (row[other] < row[cell]) === down);
          const weight = sum(near.map((p) => p[2]));
          const wish = sum(near.map(([other, shift, w]) => w * (x[other] + shift)));
          wishes.set(cell, weight ? [wish / weight, weight] : [x[cell], 0.1]);
        }
        settle(layer, sizes, x, wishes);
      }
    }
    const straight = spines(chains, port);
    for (let sweep = 0; sweep < R.SWEEPS; sweep++) {
      const wishes = new Map(cells.map((_, cell) => [cell, [x[cell], 1]]));
      for (const spine of straight) {
        const line = sum(spine.map(([cell, shift]) => x[cell] - shift)) / spine.length;
        for (const [cell, shift] of spine) wishes.set(cell, [line + shift, R.STIFF]);
      }
      for (const chain of chains.filter((c) => c.length > 3)) {
        const inner = chain.slice(1, -1).map((cell) => x[cell]), ends = [x[chain[0]], x[chain[chain.length - 1]]];
        const right = sum(inner) / inner.length >= sum(ends) / 2;
        const line = right ? Math.max(...inner, ...ends) : Math.min(...inner, ...ends);
        for (const cell of chain.slice(1, -1)) wishes.set(cell, [line, R.FIRM]);
      }
      for (const layer of layers) settle(layer, sizes, x, wishes);
    }
    const left = Math.min(...x.map((v, c) => v - sizes[c][0] / 2));
    const moved = x.map((v) => v - left);
    return { x: moved, y, spans, width: Math.max(...moved.map((v, c) => v + sizes[c][0] / 2)), height: Math.max(0, top - R.BETWEEN) };
  }

  // ---- draw.py: _Frame

  const stroke = (edge) => "edge" + (edge.level === null ? "" : ` g${edge.level}`) + (edge.dashed ? " dashed" : "");
  const named = (item) => `<tspan class="name">${esc(item.name)}</tspan>` + (item.type ? `<tspan class="type" dx="7">${esc(item.type)}</tspan>` : "");

  function bend(x0, y0, x1, y1) {
    if (Math.abs(x0 - x1) < 0.5) return `V${f(y1)}`;
    const middle = f((y0 + y1) / 2);
    return `C${f(x0)} ${middle} ${f(x1)} ${middle} ${f(x1)} ${f(y1)}`;
  }

  function frame(group) {
    const { items, edges, cells, chains, layers } = group;
    const inner = new Map();
    items.forEach((item, i) => { if (item.group && opened.has(item.group.id)) inner.set(i, frame(item.group)); });
    const size = (cell) => {
      if (cells[cell] < 0) {
        const e = -1 - cells[cell];
        return chains[e][1] === cell ? [edges[e].w, edges[e].h] : [2, 0];
      }
      const item = items[cell];
      if (!inner.has(cell)) return [item.w, item.h];
      const { placed } = inner.get(cell), [left, right] = item.head;
      const wide = [placed.width + 2 * R.PAD, left + right];
      item.group.items.forEach((p, i) => {
        if (p.kind !== "port" || p.name !== "in") return;
        const off = placed.x[i] - placed.width / 2;
        wide.push(2 * (left - off), 2 * (right + off));
      });
      return [Math.max(...wide), placed.height + R.HEAD + R.FOOT];
    };
    const port = (e, end) => {
      const node = end ? edges[e].target : edges[e].source;
      if (!inner.has(node)) return 0;
      const { placed } = inner.get(node);
      return placed.x[end ? edges[e].target_port : edges[e].source_port] - placed.width / 2;
    };
    return { group, inner, size, port, placed: place(group, size, port) };
  }

  function fans({ group, inner, placed }) {
    const shifts = [new Map(), new Map()];
    for (const end of [0, 1]) {
      const at = new Map();
      group.edges.forEach((edge, e) => {
        const node = end ? edge.target : edge.source;
        at.set(node, [...(at.get(node) || []), e]);
      });
      for (const [node, es] of at) {
        if (inner.has(node) || group.items[node].kind === "port") continue;
        const key = (e) => placed.x[group.chains[e][end ? group.chains[e].length - 2 : 1]];
        es.sort((a, b) => key(a) - key(b));
        const short = es.map((_, k) => k).filter((k) => group.chains[es[k]].length === 3);
        const middle = short.length === 1 ? short[0] : (es.length - 1) / 2;
        const room = group.items[node].w / 2 - 8;
        const step = Math.min(16, room / Math.max(middle, es.length - 1 - middle, 1));
        es.forEach((e, k) => shifts[end].set(e, (k - middle) * step));
      }
    }
    return shifts;
  }

  function box(item, x, y) {
    const { w, h, group: more } = item, left = x - w / 2, top = y - h / 2;
    const act = more ? ` data-id="${more.id}" tabindex="0" role="button"` : "";
    const rect = (c, dx, dy) => `<rect${c} x="${f(left + dx)}" y="${f(top + dy)}" width="${f(w)}" height="${f(h)}" rx="${item.kind === "module" ? 7 : 13}"/>`;
    return `<g class="box ${item.look}${more ? " more" : ""}"${act}><title>${esc(item.title)}</title>`
      + (more ? rect(' class="behind"', 4, 4) : "") + rect("", 0, 0)
      + (item.share >= 0.002 ? `<rect class="share" x="${f(left + 6)}" y="${f(top + h - 5)}" width="${f(Math.max(1, (w - 12) * item.share))}" height="3"/>` : "")
      + `<text class="middle" x="${f(x)}" y="${f(top + (item.stats ? 18 : 17))}">${named(item)}</text>`
      + (item.stats ? `<text class="middle stats" x="${f(x)}" y="${f(top + 34)}">${esc(item.stats)}</text>` : "") + "</g>";
  }

  function draw(drawn, dx, dy) {
    const { group, inner, size, port, placed } = drawn;
    const { items, edges, chains, layers } = group;
    const x = placed.x.map((v) => dx + v), y = placed.y.map((v) => dy + v), shifts = fans(drawn);
    const out = [], labels = [];
    edges.forEach((edge, e) => {
      const chain = chains[e], first = chain[0], last = chain[chain.length - 1];
      const layer = layers.findIndex((row) => row.includes(first));
      let at = x[first] + (port(e, 0) || shifts[0].get(e) || 0), here = y[first] + size(first)[1] / 2;
      const end = x[last] + (port(e, 1) || shifts[1].get(e) || 0), tip = y[last] - size(last)[1] / 2;
      let path = `M${f(at)} ${f(here)}`;
      chain.slice(1, -1).forEach((cell, k) => {
        const [top, bottom] = placed.spans[layer + k + 1].map((v) => dy + v);
        path += bend(at, here, x[cell], top) + `V${f(bottom)}`;
        at = x[cell];
        here = bottom;
      });
      const isPort = items[edge.target].kind === "port";
      path += bend(at, here, end, isPort ? tip : tip - 5);
      out.push(`<path class="${stroke(edge)}" d="${path}"><title>${esc(edge.title)}</title></path>`);
      if (!isPort) out.push(`<path class="${stroke(edge).replace("edge", "tip")}" d="M${f(end - 4)} ${f(tip - 7)}h8l-4 7z"/>`);
      if (edge.label.length) labels.push(`<rect class="page" x="${f(x[chain[1]] - edge.w / 2 + 4)}" y="${f(y[chain[1]] - edge.h / 2)}" width="${f(edge.w - 8)}" height="${f(edge.h)}"/>`);
      edge.label.forEach((text, k) => labels.push(`<text class="label" x="${f(x[chain[1]])}" y="${f(y[chain[1]] - edge.h / 2 + 11 + 14 * k)}">${esc(text)}</text>`));
    });
    items.forEach((item, i) => {
      if (inner.has(i)) {
        const [w, h] = size(i), left = x[i] - w / 2, top = y[i] - h / 2, within = inner.get(i);
        const begin = x[i] - within.placed.width / 2;
        out.push(`<g class="frame" data-id="${item.group.id}" tabindex="0" role="button"><title>${esc(item.title)}</title>`);
        out.push(`<rect x="${f(left)}" y="${f(top)}" width="${f(w)}" height="${f(h)}" rx="9"/>`);
        item.group.items.forEach((p, k) => {
          if (p.kind !== "port") return;
          const edge = item.group.edges.find((c) => c.source === k || c.target === k);
          const [low, high] = p.name === "in" ? [top, top + R.HEAD] : [top + h - R.FOOT, top + h];
          out.push(`<path class="${stroke(edge)}" d="M${f(begin + within.placed.x[k])} ${f(low)}V${f(high)}"/>`);
        });
        out.push(`<text x="${f(left + 11)}" y="${f(top + 17)}">${named(item)}</text><text class="stats right" x="${f(left + w - 11)}" y="${f(top + 17)}">${esc(item.stats)}</text>`);
        out.push(`<rect class="grip" x="${f(left)}" y="${f(top)}" width="${f(w)}" height="${R.HEAD}"/></g>`);
        out.push(draw(within, begin, top + R.HEAD));
      } else if (item.kind === "port") {
        if (edges.filter((edge) => edge.source === i).length > 1) out.push(`<circle class="dot" cx="${f(x[i])}" cy="${f(y[i])}" r="3"/>`);
      } else out.push(box(item, x[i], y[i]));
    });
    return out.concat(labels).join("\n");
  }

  // ---- the page

  const head = [...main.querySelectorAll("svg > .title, svg > .facts, svg > .swatch, svg > .mark")].map((e) => e.outerHTML).join("");
  const headWide = Number(main.querySelector("svg").dataset.head);

  function show() {
    const whole = frame(sheet.group);
    const w = Math.max(whole.placed.width, headWide) + 2 * R.MARGIN, top = 78 + (sheet.scale ? 34 : 0);
    const h = whole.placed.height + top + R.MARGIN;
    main.innerHTML = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${w.toFixed(0)} ${h.toFixed(0)}" width="${w.toFixed(0)}" height="${h.toFixed(0)}">`
      + `<rect class="page" width="100%" height="100%"/>${head}${draw(whole, (w - whole.placed.width) / 2, top)}</svg>`;
  }

  function toggle(id) {
    const find = () => main.querySelector(`[data-id="${id}"]`);
    const before = find().getBoundingClientRect().top;
    if (!opened.delete(id)) opened.add(id);
    show();
    window.scrollBy(0, find().getBoundingClientRect().top - before); // what was clicked stays under the pointer
    find().focus({ preventScroll: true });
  }

  function each(group, visit, depth = 1) {
    for (const item of group.items) if (item.group) { visit(item.group, depth); each(item.group, visit, depth + 1); }
  }

  const acts = {
    more() {
      const folded = [];
      each(sheet.group, (g, depth) => { if (!opened.has(g.id)) folded.push([depth, g.id]); });
      const least = Math.min(...folded.map(([depth]) => depth));
      for (const [depth, id] of folded) if (depth === least) opened.add(id);
      show();
    },
    less() {
      const unfolded = [];
      each(sheet.group, (g, depth) => { if (opened.has(g.id)) unfolded.push([depth, g.id]); });
      const most = Math.max(...unfolded.map(([depth]) => depth));
      for (const [depth, id] of unfolded) if (depth === most) opened.delete(id);
      show();
    },
  };
  document.querySelector("nav").addEventListener("click", (event) => acts[event.target.dataset.do]?.());
  main.addEventListener("click", (event) => {
    const hit = event.target.closest("[data-id]");
    if (hit) toggle(Number(hit.dataset.id));
  });
  main.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    const hit = event.target.closest("[data-id]");
    if (hit) { event.preventDefault(); toggle(Number(hit.dataset.id)); }
  });
  show();
})();
