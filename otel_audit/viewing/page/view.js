// The page of one trail. Whatever comes from an event is put into the page as text, never as markup, and what is not
// printable is shown as an escape: it could turn round, hide or imitate what stands beside it.
"use strict";
(() => {
  const OUTCOMES = ["success", "failure", "denied", "error", "cancelled", "unknown"];
  const STACK = ["error", "denied", "failure", "cancelled", "unknown", "success"]; // from the ground up: trouble is comparable
  const WORDS = {
    actor: "Actor", on_behalf_of: "On behalf of", tool: "Tool", path: "Path", target: "Target", type: "Type",
    service: "Service", trace: "Trace", request: "Request", since: "Since", until: "Until", text: "Text",
  };
  const STANDINGS = {
    broken: "Broken", proven: "Proven", signed: "Signed", chained: "Chained", unproven: "Not shown",
    unchecked: "Checking", unchained: "No chain",
  };
  const VERDICTS = {
    proven: ["Proven", "The signed lines are as they were written."],
    consistent: ["Consistent", "No contradiction was found in the trail."],
    empty: ["Empty", "No line and no signed ledger is here: nothing was recorded yet, or all of it was removed."],
    broken: ["Broken", "The trail is not as it was written."],
  };
  const CLASSES = { finding: "Wrong", unproven: "Not proven", notice: "Worth knowing" };
  const PAGE = 100;
  const $ = (id) => document.getElementById(id);
  const narrow = matchMedia("(max-width: 71.99rem)");
  const phone = matchMedia("(max-width: 44rem)");

  // Elements. A string is always text.

  function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (key === "class") made.className = value;
      else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
      else made.setAttribute(key, value === true ? "" : value);
    }
    made.append(...children.filter((child) => child !== null && child !== undefined));
    return made;
  }

  function drawn(name, attributes) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  }

  function symbol(id, kind) {
    const svg = drawn("svg", { class: kind, "aria-hidden": "true", focusable: "false" });
    svg.append(drawn("use", { href: `#${id}` }));
    return svg;
  }

  // Characters that are no letters of any script: controls, directions, halves of pairs, spaces that look like others.
  const ODD = /[\p{C}\p{Zl}\p{Zp}]|[^\S ]/gu;
  const code = (char) => `\\u{${char.codePointAt(0).toString(16)}}`;
  const plain = (text) => String(text).replace(ODD, code);

  function shown(value) {
    const text = String(value), made = document.createElement("bdi");
    let at = 0;
    for (const found of text.matchAll(ODD)) {
      made.append(text.slice(at, found.index), element("span", { class: "escape" }, code(found[0])));
      at = found.index + found[0].length;
    }
    made.append(text.slice(at));
    return made;
  }

  // Numbers and times. Nanoseconds are texts: a number of JavaScript is not exact enough.

  const count = (number) => number.toLocaleString("en");
  const sizeOf = (bytes) => (bytes < 1e6 ? `${count(Math.ceil(bytes / 1e3))} kB` : `${count(Math.round(bytes / 1e5) / 10)} MB`);
  const milliseconds = (ns) => Number(BigInt(ns) / 1000000n);
  const MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(" ");

  function moment(ns) {
    const date = ns === null ? new Date(NaN) : new Date(milliseconds(ns));
    if (Number.isNaN(date.getTime())) return null;
    const iso = date.toISOString();
    const [day, time] = iso.split("T");
    return { iso, time: time.slice(0, 12), clock: time.slice(0, 5), day: `${date.getUTCDate()} ${MONTHS[date.getUTCMonth()]}`, year: day.slice(0, -6) };
  }

  function timeElement(ns, whole = false) {
    const at = moment(ns);
    if (!at) return element("span", {}, ns === null ? "-" : `${ns} ns`);
    const time = element("time", { datetime: at.iso });
    const year = whole || at.year !== String(new Date().getUTCFullYear()) ? ` ${at.year}` : "";
    time.append(element("span", { class: "day" }, `${at.day}${year}`), ` ${at.time}${whole ? " UTC" : ""}`);
    return time;
  }

  // What is asked, in the URL of the page: a page can be kept, shared on this machine and left by Back.

  const asked = { words: {}, outcomes: new Set(), before: "", event: "" };
  let former = []; // places of the pages before this one

  function readAddress() {
    const given = new URLSearchParams(location.search);
    asked.words = {};
    for (const name of Object.keys(WORDS)) if (given.get(name)) asked.words[name] = given.get(name);
    asked.outcomes = new Set(given.getAll("outcome").filter((word) => OUTCOMES.includes(word)));
    asked.before = given.get("before") || "";
    asked.event = given.get("event") || "";
  }

  function parameters({ page = false } = {}) {
    const given = new URLSearchParams();
    for (const [name, word] of Object.entries(asked.words)) given.set(name, word);
    for (const outcome of OUTCOMES) if (asked.outcomes.has(outcome)) given.append("outcome", outcome);
    if (page && asked.before) given.set("before", asked.before);
    return given;
  }

  function writeAddress({ push = true } = {}) {
    const given = parameters({ page: true });
    if (asked.event) given.set("event", asked.event);
    const text = given.toString(), address = location.pathname + (text ? `?${text}` : "");
    if (address === location.pathname + location.search) return;
    history[push ? "pushState" : "replaceState"]({ former }, "", address);
  }

  // Questions to the server.

  class Refused extends Error {}

  async function ask(name, given = new URLSearchParams(), signal = undefined) {
    let answer;
    try {
      answer = await fetch(`api/${name}?${given}`, { signal, cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refused("otel-audit view has ended. Start it again, and open its new URL.");
    }
    const body = await answer.json().catch(() => ({ error: `the answer was ${answer.status}` }));
    if (!answer.ok) throw new Refused(body.error);
    return body;
  }

  let saying = 0;
  function say(text) {
    $("said").textContent = "";
    clearTimeout(saying);
    saying = setTimeout(() => { $("said").textContent = text; }, 60); // the same text twice is said twice
  }

  // Filters.

  const fields = [...document.querySelectorAll("#filters input")];

  function showFilters() {
    for (const field of fields) {
      const word = asked.words[field.name] || "";
      if (field.value !== word && document.activeElement !== field) field.value = word;
      field.classList.toggle("is-set", Boolean(word));
      field.removeAttribute("aria-invalid");
    }
    const set = Object.keys(WORDS).filter((name) => asked.words[name]);
    $("filters-set").textContent = set.length ? `(${set.length} set)` : "";
    const chips = set.map((name) => element(
      "button", { type: "button", class: "chip", "aria-label": `Remove the filter ${WORDS[name]}: ${plain(asked.words[name])}`, onclick: () => narrowTo({ [name]: "" }) },
      `${WORDS[name]} `, shown(asked.words[name]), element("span", { "aria-hidden": "true" }, "×"),
    ));
    if (set.length + asked.outcomes.size > 1) {
      chips.push(element("button", { type: "button", class: "link", onclick: clearFilters }, "Clear all"));
    }
    const inside = $("chips").contains(document.activeElement);
    $("chips").replaceChildren(...chips);
    $("chips").hidden = !chips.length;
    if (inside) ($("chips").querySelector("button") || $("f-actor")).focus();
  }

  function narrowTo(words) {
    for (const [name, word] of Object.entries(words)) {
      if (word) asked.words[name] = word;
      else delete asked.words[name];
      const field = fields.find((each) => each.name === name);
      if (field) field.value = word;
    }
    begin();
  }

  function clearFilters() {
    asked.words = {};
    asked.outcomes.clear();
    for (const field of fields) field.value = "";
    begin();
  }

  function begin() {
    asked.before = "";
    former = [];
    writeAddress();
    showFilters();
    load({ announce: true });
  }

  let typing = 0;
  const suggested = {};
  for (const field of fields) {
    field.addEventListener("input", () => {
      clearTimeout(typing);
      typing = setTimeout(() => { take(field); suggest(field); }, 350);
    });
    field.addEventListener("change", () => { clearTimeout(typing); take(field); });
    field.addEventListener("focus", () => suggest(field));
  }
  $("filters").addEventListener("submit", (event) => { event.preventDefault(); fields.forEach(take); });

  function take(field) {
    const word = field.value.trim();
    if ((asked.words[field.name] || "") !== word) narrowTo({ [field.name]: word });
  }

  async function suggest(field) {
    const list = $(`l-${field.name}`), key = `${field.name}:${field.value}:${seen.grown}`;
    if (!list || suggested[field.name] === key) return;
    suggested[field.name] = key;
    try {
      const { values } = await ask("values", new URLSearchParams({ name: field.name, text: field.value }));
      list.replaceChildren(...values.map((value) => element("option", { value })));
    } catch { /* the field can be filled in without */ }
  }

  // The timeline.

  const chips = Object.fromEntries(OUTCOMES.map((outcome) => {
    const button = element("button", { type: "button", "aria-pressed": "false", "data-outcome": outcome });
    button.addEventListener("click", () => {
      if (!asked.outcomes.delete(outcome)) asked.outcomes.add(outcome);
      begin();
    });
    $("legend").append(button);
    return [outcome, button];
  }));

  function showLegend(totals) {
    for (const [outcome, button] of Object.entries(chips)) {
      const number = totals[outcome] || 0, icon = symbol(`shape-${outcome}`, `shape ${outcome}`);
      button.replaceChildren(icon, element("span", {}, outcome[0].toUpperCase() + outcome.slice(1)), element("span", { class: "quiet" }, count(number)));
      button.setAttribute("aria-pressed", String(asked.outcomes.has(outcome)));
      button.classList.toggle("none", !number);
    }
  }

  function showTimeline(answer) {
    showLegend(answer.totals);
    const bars = answer.bars, length = Math.max(1, answer.length || 1);
    const most = Math.max(1, ...bars.map(([, counts]) => Object.values(counts).reduce((sum, each) => sum + each, 0)));
    const height = 88, gap = length > 1 ? 0.16 : 0.9 * 0;
    $("bars").setAttribute("viewBox", `0 0 ${length} ${height}`);
    const rects = [];
    for (const [place, counts] of bars) {
      let top = height;
      for (const outcome of STACK) {
        if (!counts[outcome]) continue;
        const tall = Math.max(2, (counts[outcome] / most) * (height - 10));
        top -= tall;
        rects.push(drawn("rect", { class: outcome, x: place + gap / 2, y: top, width: 1 - gap, height: tall }));
      }
    }
    $("bars").replaceChildren(...rects);
    showSpans(answer, length);
    showAxis(answer, length);
  }

  function bounds(answer, place) {
    const step = BigInt(answer.step_ns), from = BigInt(answer.begin_ns) + step * BigInt(place);
    return [from, from + step];
  }

  function spanWords([from, until], counts) {
    const begin = moment(from), end = moment(until);
    const parts = OUTCOMES.filter((outcome) => counts[outcome]).map((outcome) => `${count(counts[outcome])} ${outcome}`);
    const days = begin.day === end.day ? "" : `${end.day} `;
    const short = (at) => (until - from < 60000000000n ? at.time : at.clock);
    return `${begin.day} ${begin.year}, ${short(begin)} to ${days}${short(end)}\n${parts.join(", ")}`;
  }

  function showSpans(answer, length) {
    const held = $("spans").contains(document.activeElement);
    const buttons = answer.bars.map(([place, counts], index) => {
      const span = bounds(answer, place), words = spanWords(span, counts), at = (place + 0.5) / length;
      const tell = () => {
        $("tip").textContent = words;
        $("tip").style.left = `${Math.min(88, Math.max(12, at * 100))}%`;
        $("tip").hidden = false;
      };
      const hush = () => { $("tip").hidden = true; };
      const button = element("button", {
        type: "button", tabindex: index === answer.bars.length - 1 ? "0" : "-1", "aria-label": words.replace("\n", ": "),
        onmouseenter: tell, onmouseleave: hush, onfocus: tell, onblur: hush,
        onclick: () => narrowTo({ since: isoOf(span[0], false), until: isoOf(span[1], true) }),
      });
      button.style.left = `${(place / length) * 100}%`;
      button.style.width = `${100 / length}%`;
      return button;
    });
    $("spans").replaceChildren(...buttons);
    $("tip").hidden = true;
    if (held) ($("spans").querySelector("[tabindex='0']") || $("events")).focus();
  }

  function isoOf(ns, up) {
    const rest = ns % 1000000n;
    return new Date(Number((ns - rest) / 1000000n) + (up && rest ? 1 : 0)).toISOString();
  }

  function showAxis(answer, length) {
    if (!answer.bars.length) return $("axis").replaceChildren();
    const [begin] = bounds(answer, 0), [end] = bounds(answer, length), day = 86400000000000n;
    const labels = [0, 1, 2, 3, 4].map((part) => {
      const ns = begin + ((end - begin) * BigInt(part)) / 4n, at = moment(ns);
      if (end - begin > 3n * day) return `${at.day} ${at.year}`;
      if (end - begin > day / 2n) return `${at.day} ${at.clock}`;
      return end - begin < 300000000000n ? at.time.slice(0, end - begin < 4000000000n ? 12 : 8) : at.clock;
    });
    return $("axis").replaceChildren(...labels.map((label) => element("li", {}, label)));
  }

  $("spans").addEventListener("keydown", (event) => {
    const buttons = [...$("spans").children], at = buttons.indexOf(document.activeElement);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (to === undefined || !buttons[to]) return;
    event.preventDefault();
    rove(buttons, buttons[to]);
  });

  function rove(all, chosen) {
    for (const each of all) each.tabIndex = each === chosen ? 0 : -1;
    chosen.focus();
  }

  // The events.

  const keyOf = (row) => `${row.stream_id}:${row.seq}`;
  const whoOf = (row) => row.actor_name || row.actor_id || "";

  function actionOf(row) {
    if (row.tool) return row.tool;
    if (row.path || row.method) return [row.method, row.path].filter(Boolean).join(" ");
    return row.verb || row.event_type || (row.system ? `${row.system} of the journal` : "");
  }

  const targetOf = (row) => [row.target_type, row.target].filter(Boolean).join("/");
  const tookOf = (row) => (row.duration_ms === null ? "" : row.duration_ms < 1000 ? `${row.duration_ms.toFixed(row.duration_ms < 10 ? 1 : 0)} ms` : `${(row.duration_ms / 1000).toFixed(1)} s`);

  function outcomeMark(row) {
    return element("span", { class: "outcome" }, symbol(`shape-${row.result}`, `shape ${row.result}`), element("span", {}, shown(row.outcome || "unknown")));
  }

  function standingMark(standing) {
    return element("span", { class: `is-${standing}-mark` }, symbol(`mark-${standing}`, "mark"), element("span", { class: "word" }, STANDINGS[standing]));
  }

  function whoMark(row) {
    const who = whoOf(row) ? shown(whoOf(row)) : element("span", { class: "quiet" }, "anonymous");
    return row.on_behalf_of ? [who, element("span", { class: "for" }, " for "), shown(row.on_behalf_of)] : [who];
  }

  let rows = [], next = null, table = null, drawnFor = null, total = 0;

  function rowElement(row, fresh) {
    const key = keyOf(row), isOpen = key === asked.event;
    const label = `${plain(row.outcome || "unknown")}: ${plain(whoOf(row) || "anonymous")}, ${plain(actionOf(row))}`;
    const button = element("button", { type: "button", tabindex: "-1", "data-key": key, "aria-current": isOpen ? "true" : null, "aria-describedby": null, title: "Open this event" }, timeElement(row.time_ns), element("span", { class: "unseen" }, `, ${label}. Open`));
    const made = element(
      "tr", { class: [row.standing === "broken" && "is-broken", isOpen && "is-open", fresh && "is-fresh"].filter(Boolean).join(" ") || null },
      element("th", { scope: "row", class: "time" }, button),
      element("td", { class: "outcome" }, ...outcomeMark(row).childNodes),
      element("td", { class: "actor" }, ...whoMark(row)),
      element("td", { class: "action" }, shown(actionOf(row))),
      element("td", { class: "target" }, shown(targetOf(row))),
      element("td", { class: "status number" }, row.status_code === null ? "" : String(row.status_code)),
      element("td", { class: "took number" }, tookOf(row)),
      element("td", { class: "standing" }, standingMark(row.standing)),
    );
    made.addEventListener("click", () => openEvent(key));
    return made;
  }

  function showEvents(answer, { quiet = false } = {}) {
    const known = new Set(rows.map(keyOf)), focused = document.activeElement?.dataset?.key, top = rows[0];
    const fresh = quiet && top ? answer.events.filter((row) => !known.has(keyOf(row)) && BigInt(row.time_ns || 0) >= BigInt(top.time_ns || 0)) : [];
    rows = answer.events;
    next = answer.next;
    $("rows").replaceChildren(...rows.map((row) => rowElement(row, fresh.includes(row))));
    const buttons = rowButtons();
    const chosen = buttons.find((each) => each.dataset.key === (focused || asked.event)) || buttons[0];
    if (chosen) chosen.tabIndex = 0;
    if (focused) (chosen || $("events")).focus({ preventScroll: true });
    $("newest").disabled = $("newer").disabled = !asked.before;
    $("older").disabled = !next;
    return fresh;
  }

  const rowButtons = () => [...$("rows").querySelectorAll("th button")];

  function showCount() {
    const first = former.length * PAGE + 1, last = first + rows.length - 1;
    $("count").textContent = total === 1 ? "1 event" : `${count(total)} events`;
    $("page").textContent = rows.length && (next || asked.before) ? (former.length || !asked.before ? `${count(first)} to ${count(last)} of ${count(total)}` : `${count(rows.length)} of ${count(total)}`) : "";
    document.querySelector(".pages").hidden = !asked.before && !next;
    $("table").hidden = !rows.length;
    $("empty").hidden = Boolean(rows.length);
    if (rows.length) return;
    const isFiltered = Object.keys(asked.words).length + asked.outcomes.size > 0;
    $("empty-title").textContent = isFiltered ? "No event matches these filters" : seen.isRead ? "No events yet" : "Reading the trail";
    $("empty-words").textContent = isFiltered
      ? "All filters must find an event. A * in a word stands for any text."
      : seen.isRead ? "Events appear here as soon as they are recorded. Turn on Follow to see them come in." : "The first events appear as soon as they have been read.";
    $("empty-clear").hidden = !isFiltered;
  }

  async function load({ quiet = false, announce = false } = {}) {
    table?.abort();
    const now = (table = new AbortController());
    if (!quiet) $("table").setAttribute("aria-busy", "true");
    try {
      const page = parameters({ page: true });
      page.set("limit", PAGE);
      const grown = seen.grown;
      const wanted = `${grown}?${parameters()}`; // another page of the same answer has the same timeline
      // One after the other: together they are one look, and are recorded as one.
      const events = await ask("events", page, now.signal);
      if (table !== now) return;
      $("problem").hidden = true;
      const fresh = showEvents(events, { quiet });
      if (wanted !== drawnFor) {
        const line = await ask("timeline", parameters(), now.signal);
        if (table !== now) return;
        showTimeline(line);
        [total, drawnFor] = [line.count, wanted];
      }
      showCount();
      seen.shown = grown;
      $("new").hidden = seen.grown === grown;
      if (announce) say(total === 1 ? "1 event found" : `${count(total)} events found`);
      else if (fresh.length) sayFresh(fresh);
    } catch (error) {
      if (error.name !== "AbortError") showProblem(error.message);
    } finally {
      if (table === now) $("table").removeAttribute("aria-busy");
    }
  }

  // What a verification shows of the events that are here. New ones wait until somebody asks for them.
  async function standAgain() {
    const page = parameters({ page: true });
    page.set("limit", PAGE);
    const { events } = await ask("events", page);
    const found = new Map(events.map((row) => [keyOf(row), row]));
    showEvents({ events: rows.map((row) => found.get(keyOf(row)) || row), next });
  }

  function showProblem(text) {
    for (const name of ["since", "until"]) {
      if (asked.words[name] && text.includes("expected a time") && text.includes(`'${asked.words[name]}'`)) $(`f-${name}`).setAttribute("aria-invalid", "true");
    }
    $("problem").replaceChildren(shown(text));
    $("problem").hidden = false;
  }

  function sayFresh(fresh) {
    const last = fresh[0], what = `${plain(whoOf(last) || "anonymous")}, ${plain(last.outcome || "unknown")}, ${plain(actionOf(last))}`;
    say(fresh.length === 1 ? `New event: ${what}` : `${fresh.length} new events. The last one: ${what}`);
  }

  $("rows").addEventListener("keydown", (event) => {
    const buttons = rowButtons(), at = buttons.indexOf(document.activeElement);
    if (at < 0) return;
    const to = { ArrowUp: at - 1, ArrowDown: at + 1, k: at - 1, j: at + 1, Home: 0, End: buttons.length - 1, PageUp: Math.max(0, at - 10), PageDown: Math.min(buttons.length - 1, at + 10) }[event.key];
    if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    if (buttons[to]) rove(buttons, buttons[to]);
  });

  function turnTo(before, pages) {
    asked.before = before;
    former = pages;
    setFollowing(following && !before);
    writeAddress();
    load({ announce: false }).then(() => {
      say(`${$("page").textContent} events`);
      $("events").scrollIntoView({ block: "start" });
      (rowButtons()[0] || $("events")).focus({ preventScroll: true });
    });
  }

  $("older").addEventListener("click", () => { if (next) turnTo(next, [...former, asked.before]); });
  $("newer").addEventListener("click", () => turnTo(former.length ? former[former.length - 1] : "", former.slice(0, -1)));
  $("newest").addEventListener("click", () => turnTo("", []));
  $("empty-clear").addEventListener("click", () => { clearFilters(); $("f-actor").focus(); });
  $("new").addEventListener("click", () => { turnTo("", []); });

  // One event.

  let opening = null, openedFrom = null;

  async function openEvent(key, { push = true, focus = true } = {}) {
    opening?.abort();
    const now = (opening = new AbortController());
    const [stream, seq] = [key.slice(0, key.lastIndexOf(":")), key.slice(key.lastIndexOf(":") + 1)];
    try {
      const answer = await ask("event", new URLSearchParams({ stream, seq }), now.signal);
      if (opening !== now) return;
      asked.event = key;
      openedFrom = key;
      writeAddress({ push });
      markOpen();
      showEvent(answer);
      if (focus) $("event-title").focus();
    } catch (error) {
      if (error.name !== "AbortError") showProblem(error.message);
    }
  }

  function closeEvent({ push = true } = {}) {
    opening?.abort();
    if (!asked.event && $("event").hidden) return;
    asked.event = "";
    writeAddress({ push });
    $("event").hidden = true;
    document.querySelector(".columns").classList.remove("has-event");
    keepBehind(false);
    markOpen();
    const buttons = rowButtons(), back = buttons.find((each) => each.dataset.key === openedFrom) || buttons[0];
    if (back) rove(buttons, back);
    else $("events").focus();
  }

  function markOpen() {
    for (const button of rowButtons()) {
      const isOpen = button.dataset.key === asked.event;
      button.closest("tr").classList.toggle("is-open", isOpen);
      if (isOpen) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
  }

  function keepBehind(isOver) {
    for (const each of [$("main"), document.querySelector(".top"), document.querySelector("search"), document.querySelector("footer")]) each.inert = isOver;
  }
  narrow.addEventListener("change", () => keepBehind(narrow.matches && !$("event").hidden));

  function showEvent(answer) {
    const its = answer.fields;
    const head = element(
      "header", {},
      element("h2", { id: "event-title", tabindex: "-1" }, shown([actionOf(its) || "Event", its.tool || its.path ? "" : targetOf(its)].filter(Boolean).join(" "))),
      element("button", { type: "button", class: "close", "aria-label": "Close this event", onclick: () => closeEvent() }, "×"),
      element("p", { class: "sub" }, outcomeMark(its), element("span", {}, ...whoMark(its)), timeElement(its.time_ns, true)),
    );
    $("event").replaceChildren(head, ...[quickOf(its), proofOf(answer), factsOf(its), answer.standing !== "unchained" && chainOf(answer), lineOf(answer)].filter(Boolean));
    $("event").hidden = false;
    $("event").scrollTop = 0;
    document.querySelector(".columns").classList.add("has-event");
    keepBehind(narrow.matches);
  }

  function quickOf(its) {
    const ways = [
      ["This person", { actor: its.actor_id || its.actor_name }], ["This request", { request: its.request_id }], ["This trace", { trace: its.trace_id }],
    ].filter(([, words]) => Object.values(words)[0]);
    if (!ways.length) return null;
    const only = (words) => { if (narrow.matches) closeEvent({ push: false }); narrowTo(words); };
    return element("div", { class: "quick", role: "group", "aria-label": "Show only" }, ...ways.map(([word, words]) => element("button", { type: "button", onclick: () => only(words) }, `${word}`)));
  }

  function section(title, ...children) {
    const id = `event-${title.toLowerCase().replace(/\W+/g, "-")}`;
    return element("section", { "aria-labelledby": id }, element("h3", { id }, title), ...children);
  }

  function proofOf(answer) {
    const its = answer.fields, result = element("div", { class: "result", role: "status" });
    const findings = answer.findings.length ? element("ul", { class: "findings" }, ...answer.findings.map((each) => element("li", {}, element("span", { class: "finding" }, CLASSES[each.class]), shown(each.message), ""))) : null;
    const button = answer.can_prove ? element("button", { type: "button", class: "main", onclick: () => download(its, result) }, "Download the proof") : null;
    return section("Proof", element("p", { class: "badge" }, standingMark(answer.standing)), element("p", {}, answer.standing_words), findings, button && element("p", { class: "proof-actions" }, button), result);
  }

  async function download(its, result) {
    result.textContent = "Making the proof…";
    try {
      const made = await ask("proof", new URLSearchParams({ stream: its.stream_id, seq: its.seq }));
      const bytes = Uint8Array.from(atob(made.proof), (char) => char.charCodeAt(0));
      const address = URL.createObjectURL(new Blob([bytes], { type: "application/octet-stream" }));
      element("a", { href: address, download: made.name }).click();
      setTimeout(() => URL.revokeObjectURL(address), 60000);
      result.replaceChildren(
        element("p", {}, "Downloaded ", element("code", {}, made.name), ". It holds this event and no other. Whoever checks it must get the key separately:"),
        ...made.checks.map((command) => element("code", {}, plain(command))),
        made.key_ids.length ? element("p", {}, "The ledger announced the key in lines that are not there any more: ", element("code", {}, plain(made.key_ids.join(", ")))) : "",
      );
    } catch (error) {
      result.replaceChildren(element("p", {}, "There is no proof yet: ", shown(error.message)));
    }
  }

  const FACTS = [
    ["Actor", "actor_name", "actor"], ["Id", "actor_id", "actor"], ["Issuer", "actor_issuer"], ["Kind", "actor_kind"], ["Roles", "roles"], ["On behalf of", "on_behalf_of", "on_behalf_of"],
    ["Address", "client"], ["User agent", "user_agent"], ["Type", "event_type", "type"], ["Tool", "tool", "tool"], ["Method", "method"], ["Path", "path", "path"], ["Verb", "verb"],
    ["Target", "target", "target"], ["Target type", "target_type"], ["Status", "status_code"], ["Took", "duration_ms"], ["Error", "error_type"], ["Reason", "reason"], ["Policy", "policy_id"], ["Detail", "detail"],
    ["Attributes", "attributes"], ["Service", "service", "service"], ["Request", "request_id", "request"], ["Trace", "trace_id", "trace"], ["Span", "span_id"], ["Belongs to", "parent_id"], ["Event id", "event_id"],
  ];

  function factsOf(its) {
    const list = element("dl", { class: "facts" });
    for (const [name, key, filter] of FACTS) {
      const value = its[key];
      if (value === null || value === "" || value === "[]" || value === "{}") continue;
      const text = key === "duration_ms" ? tookOf(its) : String(value), isLong = text.length > 400;
      const only = filter ? element("button", { type: "button", class: "link", "aria-label": `Show only ${name} ${plain(text).slice(0, 80)}`, onclick: () => { if (narrow.matches) closeEvent({ push: false }); narrowTo({ [filter]: text }); } }, "only") : null;
      const isCode = /_id$|^attributes$|^path$/.test(key);
      list.append(element("dt", {}, name), element("dd", { class: isCode ? "mono" : null, tabindex: isLong ? "0" : null, role: isLong ? "region" : null, "aria-label": isLong ? name : null }, shown(text), text.length >= 20000 ? element("span", { class: "quiet" }, " … cut here") : null, only ? " " : null, only));
    }
    return section("Facts", list);
  }

  function chainOf(answer) {
    const { chain, fields: its, stream } = answer, seq = Number(its.seq), short = (hash) => element("code", { title: hash }, `${hash.slice(0, 16)}…`);
    const fits = (named, hash) => (named === hash ? element("span", {}, "and it does") : element("span", { class: "bad" }, "and it does not"));
    const steps = [];
    if (seq > 1) {
      steps.push(element("li", { class: chain.before !== null && chain.before !== chain.names ? "is-cut" : null }, `Line ${count(seq - 1)} `, chain.before === null ? element("span", { class: "quiet" }, "is not here") : short(chain.before)));
    }
    const names = seq === 1 ? "It begins the stream." : chain.before === null ? "The line before it is not here to compare." : ["It must name the line before it by that hash, ", fits(chain.names, chain.before), "."];
    steps.push(element("li", { class: ["own", !chain.is_last && chain.after_names !== chain.hash && "is-cut"].filter(Boolean).join(" ") }, element("strong", {}, `Line ${count(seq)}`), ", this event ", short(chain.hash), element("br"), ...[names].flat()));
    steps.push(chain.is_last
      ? element("li", {}, element("span", { class: "quiet" }, "No line behind it yet"))
      : element("li", {}, `Line ${count(seq + 1)} must name this event by its hash, `, fits(chain.after_names, chain.hash), "."));
    const about = stream ? `The chain of this stream is whole up to line ${count(stream.chain_to)}; notes have signed it up to line ${count(stream.signed_to)}${stream.anchored_to ? `, and what you gave vouches for it up to line ${count(stream.anchored_to)}` : ""}.` : "";
    return section("Place in the chain", element("ol", { class: "chain" }, ...steps), about ? element("p", { class: "proof-actions" }, about) : null, element("p", { class: "quiet mono" }, `stream ${plain(its.stream_id)}`));
  }

  function lineOf(answer) {
    const its = answer.fields, given = new URLSearchParams({ stream: its.stream_id, seq: its.seq });
    const copy = element("button", { type: "button", onclick: async () => {
      try {
        const whole = await (await fetch(`api/line?${given}`)).text();
        await navigator.clipboard.writeText(whole.replace(/\n$/, ""));
        say("Line copied");
        copy.textContent = "Copied";
      } catch {
        copy.textContent = "Could not be copied";
      }
      setTimeout(() => { copy.textContent = "Copy"; }, 2000);
    } }, "Copy");
    const save = element("button", { type: "button", onclick: () => element("a", { href: `api/line?${given}`, download: `${its.stream_id}-${its.seq}.json` }).click() }, "Download");
    const size = `${count(answer.line_bytes)} bytes${answer.is_cut ? ", the first of which are shown" : ""}`;
    const pre = element("pre", { tabindex: "0", role: "region", "aria-label": "The line" });
    pre.append(...(answer.is_cut ? [shown(answer.line)] : indented(answer.line)));
    return section("Line", pre, element("p", { class: "line proof-actions" }, copy, save, element("span", { class: "quiet" }, size)));
  }

  // The tokens of a line on lines of their own, each as it stands: numbers are not read, and so not rounded.
  function indented(text) {
    const pieces = [];
    let depth = 0;
    for (const [token] of text.matchAll(/"(?:[^"\\]|\\.)*"(?:\s*:)?|[{}[\],]|[^"{}[\],\s]+/g)) {
      const line = () => `\n${"  ".repeat(depth)}`;
      if (token === "{" || token === "[") { depth += 1; pieces.push(token, line()); }
      else if (token === "}" || token === "]") { depth = Math.max(0, depth - 1); pieces.push(line(), token); }
      else if (token === ",") pieces.push(token, line());
      else if (token.endsWith(":") && token.startsWith('"')) pieces.push(element("span", { class: "key" }, shown(token.slice(0, -1).trimEnd())), ": ");
      else pieces.push(shown(token));
    }
    return pieces;
  }

  // The verification.

  $("verdict").addEventListener("click", () => {
    const isOpen = $("verification").hidden;
    $("verification").hidden = !isOpen;
    $("verdict").setAttribute("aria-expanded", String(isOpen));
    if (isOpen) $("verification").focus();
  });

  async function showVerification() {
    const found = await ask("verification");
    if (!found.verdict) return;
    const [word, sentence] = VERDICTS[found.verdict];
    const unproven = found.counts.unproven ? ` ${count(found.counts.unproven)} facts below are not proven.` : "";
    const body = [element("p", {}, element("strong", {}, word), `. ${sentence}${unproven}${found.verdict === "broken" ? "" : ` ${count(found.signed)} lines are signed. ${found.pins.length ? `The key or note that you gave vouches for ${count(found.vouched)} of them.` : "Nothing from outside vouches for them: start with --key or --known."}`} Checked at `, timeElement(found.time_ns, true), ".")];
    if (found.findings.length) {
      body.push(element("ul", { class: "findings" }, ...found.findings.map((each) => element(
        "li", {}, element("span", { class: each.class }, CLASSES[each.class]), shown(each.message),
        each.stream_id && each.seq ? element("button", { type: "button", class: "link", onclick: () => openEvent(`${each.stream_id}:${each.seq}`) }, `Open line ${count(each.seq)}`) : "",
      ))));
      if (found.more_findings) body.push(element("p", { class: "quiet" }, `and ${count(found.more_findings)} more: see otel-audit verify`));
    }
    const head = ["Stream", "Service", "State", "Lines", "Chained to", "Signed to", "Vouched for to"];
    const cells = (each) => [each.service, each.state, count(each.lines), count(each.chain_to), count(each.signed_to), count(each.anchored_to)];
    body.push(element("div", { class: "scroll", role: "region", "aria-label": "Streams", tabindex: "0" }, element(
      "table", {}, element("caption", { class: "unseen" }, "Streams"), element("thead", {}, element("tr", {}, ...head.map((each, place) => element("th", { scope: "col", class: place > 2 ? "number" : null }, each)))),
      element("tbody", {}, ...found.streams.map((each) => element("tr", {}, element("th", { scope: "row", class: "mono" }, shown(each.stream_id)), ...cells(each).map((cell, place) => element("td", { class: place > 1 ? "number" : null }, shown(cell)))))),
    )));
    if (found.more_streams) body.push(element("p", { class: "quiet" }, `and ${count(found.more_streams)} more streams`));
    for (const ledger of found.ledgers) {
      body.push(element("dl", { class: "facts" }, element("dt", {}, "Ledger"), element("dd", { class: "mono" }, shown(ledger.origin)), element("dt", {}, "Its key"), element("dd", { class: "mono" }, shown(ledger.vkey)), ...(ledger.identity ? [element("dt", {}, "Identity"), element("dd", { class: "mono" }, shown(ledger.identity))] : []), element("dt", {}, "Last note"), element("dd", {}, timeElement(ledger.note_time_ns, true))));
    }
    $("verification-body").replaceChildren(...body);
  }

  function showVerdict(state) {
    const stage = state.verifying, verdict = state.verdict;
    const isEmpty = verdict === "empty";
    const word = isEmpty ? "Nothing to verify yet" : !stage ? "No chain to verify" : stage.error ? "Could not be verified" : verdict ? VERDICTS[verdict][0]
      : stage.share === null ? "Not verified yet" : `Verifying, ${Math.floor(stage.share * 100)} %`;
    const mark = isEmpty ? "unchecked" : verdict === "broken" || stage?.error ? "broken" : verdict === "proven" ? "proven" : verdict ? "signed" : "unchecked";
    $("verdict-word").textContent = word;
    $("verdict").className = `verdict${verdict && !isEmpty ? ` is-${verdict}` : ""}`;
    $("verdict").querySelector("use").setAttribute("href", `#mark-${mark}`);
    $("verdict").disabled = !verdict && !stage?.error;
    if (stage?.error && !verdict) $("verification-body").replaceChildren(element("p", {}, shown(stage.error)));
  }

  // How far things have come, and what is new.

  const seen = { grown: -1, shown: -1, verified: -1, isRead: false };
  let following = false;

  function setFollowing(on) {
    if (on === following) return;
    following = on;
    $("follow").setAttribute("aria-pressed", String(on));
    if (on && asked.before) turnTo("", []);
    else if (on) load({ quiet: true });
    say(on ? "Following: new events appear at the top" : "Not following");
  }
  $("follow").addEventListener("click", () => setFollowing(!following));

  function showReading({ reading, unread, outdated }) {
    const percent = reading.share === null ? null : Math.floor(reading.share * 100), isBroken = Boolean(reading.error || outdated);
    $("reading").hidden = reading.is_done && !outdated;
    $("reading-bar").hidden = isBroken;
    $("reading").classList.toggle("is-broken", isBroken);
    if (reading.is_done) $("about").textContent = [...unread, `otel-audit ${seen.version}`].join(" · ");
    if (isBroken) {
      const words = outdated ? "The trail could not be read again, so what you see may be old: " : "The trail could not be read: ";
      if ($("reading").dataset.said !== (outdated || reading.error)) {
        $("reading").dataset.said = outdated || reading.error;
        $("reading-words").replaceChildren(words, shown(outdated || reading.error));
        say($("reading-words").textContent);
      }
      return;
    }
    delete $("reading").dataset.said;
    if (reading.is_done) return;
    const far = percent ? `: ${percent} %` : reading.size_bytes ? `: ${sizeOf(reading.size_bytes)} so far` : "";
    $("reading-words").textContent = `Reading the trail${far}. ${rows.length ? "The newest events are here already; filters find all of them when it is done." : ""}`;
    if (!percent) $("reading-bar").removeAttribute("aria-valuenow");
    else $("reading-bar").setAttribute("aria-valuenow", String(percent));
    $("reading-bar").firstElementChild.style.width = percent ? `${percent}%` : "";
  }

  async function look() {
    try {
      const state = await ask("state", new URLSearchParams(following ? { follow: "1" } : {}));
      const isFirst = seen.grown < 0, grew = state.grown !== seen.grown, wasRead = seen.isRead;
      seen.version = state.version;
      seen.grown = state.grown;
      seen.isRead = state.reading.is_done;
      if (isFirst) {
        $("source").replaceChildren(element("span", { class: "unseen" }, `${state.kind}: `), shown(state.source));
        document.title = `Audit trail: ${plain(state.source)}`;
      }
      showReading(state);
      showVerdict(state);
      const isVerified = state.verified !== seen.verified && state.verdict;
      if (isVerified) {
        if (seen.verified >= 0 || state.verdict === "broken") say(`Verification: ${VERDICTS[state.verdict][0]}`);
        await showVerification();
      }
      seen.verified = state.verified;
      if (isFirst) { await load(); if (asked.event) await openEvent(asked.event, { push: false, focus: false }); }
      else if (grew && (following || !wasRead || !rows.length)) await load({ quiet: true });
      else {
        if (grew) $("new").hidden = false;
        if (isVerified) await standAgain();
      }
      if (isVerified && !isFirst && asked.event) await openEvent(asked.event, { push: false, focus: false });
      if (!state.reading.is_done) return 400;
    } catch (error) {
      showProblem(error.message);
    }
    return document.hidden ? 5000 : following ? 700 : 1500;
  }

  async function watch() {
    for (;;) {
      const wait = await look();
      await new Promise((done) => { setTimeout(done, wait); });
    }
  }

  addEventListener("keydown", (event) => {
    const isTyping = event.target instanceof HTMLInputElement;
    if (event.key === "Escape" && !$("event").hidden && !isTyping) closeEvent();
    else if (event.key === "/" && !isTyping && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      $("fields").open = true;
      $("f-text").focus();
    }
  });

  addEventListener("popstate", (event) => {
    readAddress();
    former = event.state?.former || [];
    for (const field of fields) field.value = asked.words[field.name] || "";
    showFilters();
    load();
    if (asked.event) openEvent(asked.event, { push: false });
    else closeEvent({ push: false });
  });

  const fold = () => { $("fields").open = !phone.matches; };
  phone.addEventListener("change", fold);
  fold();
  readAddress();
  showFilters();
  showLegend({});
  watch();
})();
