"use strict";
/* Draws the charts of a page from its JSON, shows times in the reader's zone, and copies commands. */
(() => {
  const number = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
  const moment = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "short" });
  const day = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium" });
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const element = document.getElementById("charts");
  const data = element ? JSON.parse(element.textContent) : null;
  const drawn = [];

  /* Figures by minute (`minutes.KIND` of the JSON: lists by the minute since 1970) in the form of all other charts.
     A minute without a list is a gap: serving did not answer. */
  function minutesOf(kind, limit) {
    const rows = data.minutes[kind];
    const minutes = Object.keys(rows).map(Number);
    const first = minutes[0];
    const count = minutes.length ? minutes.at(-1) - first + 1 : 0;
    const times = Array.from({ length: count }, (_, place) => 60 * (first + place));
    const chartOf = (column) => {
      const values = times.map((time) => rows[time / 60]?.[column] ?? null);
      return {
        values,
        limits: limit ? times.map(() => limit) : [],
        bad: limit ? values.flatMap((value, place) => (value > limit ? [place] : [])) : [],
      };
    };
    const now = new Date(document.querySelector("time.updated").dateTime) / 1000;
    return { times, since: times[0], until: Math.max(now, times.at(-1) ?? now), chartOf };
  }

  /* Days are days of UTC, so that only their charts have its axis. */
  function tickTexts(zone) {
    const date = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", timeZone: zone });
    const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", timeZone: zone });
    return (_plot, times, _axis, _space, step) =>
      times.map((time) => {
        const text = clock.format(time * 1000);
        return step >= 86400 || text === "00:00" ? date.format(time * 1000) : text;
      });
  }

  function yRange(kind) {
    return (_plot, low, high) => {
      if (low === null || (low === 0 && high === 0)) return [0, 1];
      const isFromZero = kind === "bars" || (low >= 0 && low < high / 2);
      const bottom = isFromZero ? 0 : low;
      const room = (high - bottom || Math.abs(high) || 1) * 0.08;
      return [isFromZero ? 0 : bottom - room, high + room];
    };
  }

  function marksOf(plot) {
    const { ctx, bbox } = plot;
    const pixels = devicePixelRatio;
    ctx.save();
    ctx.font = `${11 * pixels}px ${colour("font")}`;
    ctx.textAlign = "left";
    ctx.lineWidth = pixels;
    ctx.setLineDash([4 * pixels, 3 * pixels]);
    /* Where two names would overlap, the newer one is written. */
    let free = Infinity;
    for (const [time, text] of [...(data.marks || [])].reverse()) {
      if (time < plot.scales.x.min || time > plot.scales.x.max) continue;
      const x = Math.round(plot.valToPos(time, "x", true));
      ctx.strokeStyle = colour("ok");
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      const width = ctx.measureText(text).width;
      const left = Math.min(x + 4 * pixels, bbox.left + bbox.width - width);
      if (left + width <= free) {
        ctx.fillStyle = colour("muted");
        ctx.fillText(text, left, bbox.top - 4 * pixels);
        free = left - 8 * pixels;
      }
    }
    ctx.restore();
  }

  function badPointsOf(plot, charts, times) {
    const { ctx } = plot;
    ctx.save();
    ctx.fillStyle = colour("bad");
    for (const chart of charts) {
      for (const place of chart.bad) {
        const x = plot.valToPos(times[place], "x", true);
        const y = plot.valToPos(chart.values[place], "y", true);
        ctx.beginPath();
        ctx.arc(x, y, 2.5 * devicePixelRatio, 0, 2 * Math.PI);
        ctx.fill();
      }
    }
    ctx.restore();
  }

  /* The text below a chart: the values at the cursor, else the newest, as the server wrote them. */
  function readoutOf(box, times) {
    const readout = box.parentElement.querySelector(".readout");
    const values = [...readout.querySelectorAll("b")];
    const at = readout.querySelector(".at");
    const newest = [...values, at].map((part) => part.innerHTML);
    return (place, charts, isDays) => {
      if (place === null) {
        [...values, at].forEach((part, index) => { part.innerHTML = newest[index]; });
        return;
      }
      charts.forEach((chart, index) => {
        const value = chart.values[place];
        const limit = chart.limits[place];
        const limitText = typeof limit === "number" ? `, limit ${number.format(limit)}` : "";
        const badText = chart.bad.includes(place) ? ", bad" : "";
        values[index].textContent = value === null ? "not measured" : number.format(value) + limitText + badText;
      });
      const time = new Date(times[place] * 1000);
      at.textContent = isDays ? time.toISOString().slice(0, 10) : moment.format(time);
    };
  }

  function seriesOf(charts, kind, times, spanGaps) {
    const series = [{}];
    const values = [times];
    charts.forEach((chart, index) => {
      const isBad = kind === "spark" && chart.bad.includes(chart.values.length - 1);
      const stroke = isBad ? colour("bad") : colour(`k${index}`);
      const one = { stroke, width: 1.6, spanGaps, points: { size: 5 } };
      if (kind === "area") one.fill = colour("accent-area");
      if (kind === "bars") Object.assign(one, { fill: stroke, paths: uPlot.paths.bars({ size: [0.7, 30] }), points: { show: false } });
      if (kind === "spark" && times.length > 1) one.points = { show: false };
      series.push(one);
      values.push(chart.values);
      if (chart.limits.some((limit) => limit !== null)) {
        series.push({ stroke: colour("mark"), width: 1, dash: [4, 4], spanGaps: true, points: { show: false } });
        values.push(chart.limits);
      }
    });
    return { series, values };
  }

  /* Arrow keys move the cursor of a chart that has the focus; its values are then read out. */
  function listenToKeys(box, plot, chart, times) {
    const readout = box.parentElement.querySelector(".readout");
    const places = chart.values.flatMap((value, place) => (value === null ? [] : [place]));
    let current = places.length;
    box.addEventListener("keydown", (event) => {
      const targets = { ArrowLeft: current - 1, ArrowRight: current + 1, Home: 0, End: places.length - 1 };
      if (!(event.key in targets) || !places.length) return;
      event.preventDefault();
      readout.setAttribute("aria-live", "polite");
      current = Math.max(0, Math.min(places.length - 1, targets[event.key]));
      plot().setCursor({ left: plot().valToPos(times[places[current]], "x"), top: 5 });
    });
    box.addEventListener("blur", () => {
      readout.removeAttribute("aria-live");
      plot().setCursor({ left: -10, top: -10 });
    });
  }

  function start(box) {
    const kind = box.dataset.kind;
    const isSpark = kind === "spark";
    const isDays = kind === "bars";
    const { minutes, limit } = box.dataset;
    const source = minutes ? minutesOf(minutes, Number(limit)) : { ...data, chartOf: (name) => data.charts[name] };
    const { times, since, until } = source;
    const charts = JSON.parse(box.dataset.names).map(source.chartOf).filter(Boolean);
    if (!charts.length || !times.length) return;
    const tell = isSpark ? null : readoutOf(box, times);
    let plot = null;
    const draw = () => {
      const { series, values } = seriesOf(charts, kind, times, !minutes);
      const axis = { stroke: colour("muted"), font: `11px ${colour("font")}`, grid: { stroke: colour("line"), width: 1 }, ticks: { show: false } };
      const hidden = { show: false };
      const room = Math.max(60, (until - since) * 0.015) + (isDays ? 43200 : 0);
      const options = {
        width: box.clientWidth,
        height: box.clientHeight,
        padding: isSpark ? [3, 3, 3, 3] : [14, 20, 0, 0],
        legend: hidden,
        cursor: isSpark ? hidden : { y: false, drag: { x: false, y: false }, sync: { key: minutes ? "minutes" : "page" }, points: { size: 7 } },
        scales: { x: { range: () => [since - room, until + room] }, y: { range: yRange(kind) } },
        axes: isSpark ? [hidden, hidden] : [
          { ...axis, space: 70, size: 30, values: tickTexts(isDays ? "UTC" : undefined), grid: hidden },
          { ...axis, space: 36, size: 56, values: (_plot, ticks) => ticks.map((tick) => number.format(tick)) },
        ],
        series,
        hooks: {
          draw: isSpark ? [] : [marksOf, (drawnPlot) => badPointsOf(drawnPlot, charts, times)],
          setCursor: tell ? [(moved) => tell(moved.cursor.left < 0 ? null : moved.cursor.idx ?? null, charts, isDays)] : [],
        },
        tzDate: isDays ? (time) => uPlot.tzDate(new Date(time * 1000), "Etc/UTC") : undefined,
      };
      if (plot) plot.destroy();
      plot = new uPlot(options, values, box);
    };
    draw();
    drawn.push(draw);
    new ResizeObserver(() => {
      if (box.clientWidth !== plot.width) plot.setSize({ width: box.clientWidth, height: box.clientHeight });
    }).observe(box);
    if (!isSpark) {
      box.tabIndex = 0;
      box.setAttribute("role", "img");
      box.setAttribute("aria-label", `${box.dataset.label}: chart; arrow keys move through its values`);
      listenToKeys(box, () => plot, charts[0], times);
    }
  }

  /* As the macro `age` has it. */
  function ageOf(time) {
    const seconds = Math.max(0, (Date.now() - new Date(time.dateTime)) / 1000);
    const minutes = seconds / 60;
    if (minutes < 2) return `${seconds.toFixed(0)} s`;
    if (minutes < 120) return `${minutes.toFixed(0)} min`;
    return minutes < 2880 ? `${(minutes / 60).toFixed(0)} h` : `${(minutes / 1440).toFixed(0)} days`;
  }

  function showTimes() {
    for (const time of document.querySelectorAll("time:not(.ago, .updated)")) {
      const format = time.matches(".day") ? day : moment;
      time.textContent = format.format(new Date(time.dateTime));
    }
    const updated = document.querySelector("time.updated");
    const tick = () => {
      for (const time of [updated, ...document.querySelectorAll("time.ago")]) time.textContent = `${ageOf(time)} ago`;
    };
    tick();
    setInterval(tick, 1000);
  }

  /* Without a secure context there is no clipboard: the command is then selected. */
  async function copy(code, button) {
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  }

  function addCopyButtons() {
    for (const code of document.querySelectorAll("code.command")) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "copy";
      button.textContent = "Copy";
      button.setAttribute("aria-label", `Copy: ${code.textContent}`);
      button.addEventListener("click", () => copy(code, button));
      code.after(button);
    }
  }

  /* An answer is to come; what somebody types meanwhile is not lost. */
  function reload() {
    if (!document.activeElement.matches("input, select")) location.reload();
  }

  if (document.querySelector("[data-reload]")) setInterval(reload, 1000);
  /* On a phone the navigation and the tabs are wider than the page. */
  for (const link of document.querySelectorAll(":is(.side, .tabs) [aria-current]")) link.scrollIntoView({ block: "nearest", inline: "center" });
  showTimes();
  addCopyButtons();
  if (data) {
    document.querySelectorAll("[data-names]").forEach(start);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach((draw) => draw()));
  }
})();
