// The live page: sends pictures and commands, shows what comes back. The messages are described in protocol.py.
"use strict";

const $ = (id) => document.getElementById(id);
const VERSION = 1, PICTURE = 1, FRAME = 2, KEYFRAME = 1, HELD = 2, GUIDED = 4;
const PICTURE_HEAD = 16, FRAME_HEAD = 32, PLOTTED = 240, MOST_WAITING = 12, SENT_SIDE = 480;
const MARK = "Synthesised by fastv2v: these pictures were made by a network and show no real event.";

const state = {
  socket: null, hello: null, settings: {}, source: "page", retry: 500, ended: false,
  number: 0, capturing: false, video: $("video"), stream: null,
  frames: [], arrivals: [], shownAt: 0, interval: 1000 / 25, delays: [], times: [], generation: 0,
  brush: { label: 0, size: 14, last: null, points: [], begins: true, cursor: null },
  recorder: null, parts: [],
  reaches: [], heldSince: null, isGuided: true, lastIndex: -1, skipped: 0,
};

// ---- what is said to the user

function say(message) {
  $("message").textContent = message || "";
  $("message").hidden = !message;
}

function send(type, content = {}) {
  if (state.socket && state.socket.readyState === WebSocket.OPEN) {
    state.socket.send(JSON.stringify({ type, ...content }));
  }
}

// ---- the connection

function token() {
  return new URLSearchParams(location.hash.slice(1)).get("token");
}

function connect() {
  const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/stream`);
  socket.binaryType = "arraybuffer";
  state.socket = socket;
  socket.onopen = () => {
    state.retry = 500;
    send("hello", token() ? { token: token() } : {});
  };
  socket.onmessage = (event) => {
    if (typeof event.data === "string") told(JSON.parse(event.data));
    else arrived(event.data);
  };
  socket.onclose = (event) => {
    if (state.ended) return;
    const isRefused = event.code === 1008;
    if (event.reason) say(`${event.reason}.`);
    else say("The server is gone; trying again.");
    $("about").textContent = "Not connected";
    if (!isRefused) setTimeout(connect, (state.retry = Math.min(10000, 2 * state.retry)));
  };
}

function told(message) {
  if (message.type === "hello") greet(message);
  else if (message.type === "state") settle(message);
  else if (message.type === "stats") count(message);
  else if (message.type === "error") say(message.message && `${message.message}.`);
}

function greet(hello) {
  const isFirst = state.hello === null;
  state.hello = hello;
  const [height, width] = hello.size;
  for (const id of ["condition", "output", "keyframe"]) Object.assign($(id), { width, height });
  $("name").textContent = hello.name;
  document.title = `${hello.name} – fastv2v live`;
  $("about").textContent = `${hello.condition}, ${width} × ${height}`;
  say("");
  $("running").textContent = "The engine is being opened …"; // until the first state comes
  offerSources();
  options($("engine"), hello.engines.map((name) => [name, name]));
  options($("gap"), Array.from({ length: Math.max(16, hello.gap || 0) }, (_, i) => [i + 1, i + 1]));
  const said = { blend: "cross-fade", ultrafast: "motion, coarse", fast: "motion", medium: "motion, finer", network: "network" };
  options($("grade"), hello.grades.map((name) => [name, said[name] || name]));
  $("brush").hidden = !hello.classes.length;
  if (hello.classes.length) offerClasses(hello.classes);
  $("outside").hidden = hello.warn_above === null;
  if (hello.warn_above !== null) $("reachbar").high = hello.warn_above;
  $("notes").replaceChildren(...hello.notes.map((note) => {
    const item = document.createElement("li");
    item.textContent = `${note[0].toUpperCase()}${note.slice(1)}.`;
    return item;
  }));
  if (hello.sources.includes(state.source)) choose(state.source);
  else if (isFirst) choose(hello.sources[0] || (hello.pictures ? "camera" : null));
  else send("source", { name: "page" });
}

function options(select, pairs) {
  select.replaceChildren(...pairs.map(([value, text]) => new Option(text, value)));
}

function settle(message) {
  const { source } = state.settings;
  const hasEnded = message.source === "page" && source === state.source && source !== "page";
  state.settings = message;
  $("engine").value = message.engine;
  $("gap").value = message.gap;
  $("grade").value = message.grade;
  $("causal").checked = message.causal;
  $("hold").setAttribute("aria-pressed", String(message.held));
  $("undo").disabled = !message.strokes;
  const waits = message.causal ? "frames come at once" : `a frame waits for up to ${message.waits} later ones`;
  $("running").textContent = `Running on ${message.running}; ${waits}.`;
  if (hasEnded) {
    state.source = "page";
    pressed(null);
  }
}

function count(stats) {
  $("step").textContent = stats.keyframe_ms.toFixed(1);
  $("dropped").textContent = String(stats.dropped + state.skipped);
}

// ---- sources

function offerSources() {
  const names = state.hello.sources.map((name) => [name, name]);
  if (state.hello.pictures) names.unshift(["camera", "my camera"], ["file", "a video file"]);
  $("sources").replaceChildren(...names.map(([name, text]) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.dataset.name = name;
    button.setAttribute("aria-pressed", "false");
    button.onclick = () => choose(name);
    return button;
  }));
  $("unreadable").hidden = !state.hello.unreadable;
  $("unreadable").textContent = state.hello.unreadable ? `No camera or video: ${state.hello.unreadable}.` : "";
}

function pressed(name) {
  for (const button of $("sources").children) button.setAttribute("aria-pressed", String(button.dataset.name === name));
}

async function choose(name) {
  if (name === null) return;
  if (name === "file") { $("file").click(); return; }
  stopPictures();
  say("");
  if (name !== "camera") {
    state.source = name;
    pressed(name);
    send("source", { name });
    return;
  }
  if (!navigator.mediaDevices) {
    say("This browser gives its camera to https pages and to http://localhost only.");
    return;
  }
  const generation = state.generation;
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: 640, height: 480 }, audio: false });
  } catch (error) {
    say(`The camera cannot be used: ${error.message || error.name}. Allow it in the browser, see that no other program has it, and choose it again.`);
    return;
  }
  if (generation !== state.generation) { // another source was chosen while the browser asked
    for (const track of stream.getTracks()) track.stop();
    return;
  }
  state.stream = stream;
  for (const track of stream.getTracks()) {
    track.onended = () => { if (state.stream === stream) say("The camera stopped; connect it and choose it again."); };
  }
  state.video.srcObject = state.stream;
  startPictures("camera");
}

$("file").onchange = () => {
  const file = $("file").files[0];
  $("file").value = "";
  if (!file) return;
  stopPictures();
  say("");
  state.video.src = URL.createObjectURL(file);
  startPictures("file");
};

$("video").onerror = () => { if (state.video.src) say("This browser cannot play that file; give an MP4 or WebM, or let the server play it (--video)."); };

function startPictures(name) {
  state.source = "page";
  pressed(name);
  send("source", { name: "page" });
  state.video.play().catch((error) => {
    if (error.name !== "AbortError") say(`The video cannot be played: ${error.message}.`); // else another source came
  });
  state.capturing = true;
  capture(++state.generation);
}

function stopPictures() {
  state.capturing = false;
  state.reaches = [];
  state.generation++;
  if (state.stream) for (const track of state.stream.getTracks()) track.stop();
  state.stream = null;
  state.video.pause();
  state.video.srcObject = null;
  if (state.video.src) URL.revokeObjectURL(state.video.src);
  state.video.removeAttribute("src");
}

const grabbed = document.createElement("canvas");

// One picture at a time, and only while the server keeps up: what is not sent cannot be stale.
async function capture(generation) {
  let last = -1;
  while (state.capturing && generation === state.generation) {
    await nextPicture();
    const video = state.video;
    const isNew = video.readyState >= 2 && video.currentTime !== last;
    const isOpen = state.socket && state.socket.readyState === WebSocket.OPEN;
    if (!isNew || !isOpen || state.settings.held || state.socket.bufferedAmount > 200000) continue;
    last = video.currentTime;
    const jpeg = await shot(video);
    if (!jpeg || generation !== state.generation) continue;
    const data = new ArrayBuffer(PICTURE_HEAD + jpeg.byteLength);
    const view = new DataView(data);
    view.setUint8(0, VERSION);
    view.setUint8(1, PICTURE);
    view.setUint32(4, (state.number = (state.number + 1) >>> 0), true);
    view.setFloat64(8, performance.now(), true);
    new Uint8Array(data, PICTURE_HEAD).set(new Uint8Array(jpeg));
    state.socket.send(data);
  }
}

function nextPicture() {
  const video = state.video;
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, 100);
    const done = () => { clearTimeout(timer); resolve(); };
    if (video.requestVideoFrameCallback) video.requestVideoFrameCallback(done);
    else requestAnimationFrame(done);
  });
}

// People are looked for in whole pictures; others are cut to the trained proportions here.
async function shot(video) {
  const [height, width] = state.hello.wanted;
  let [w, h] = [video.videoWidth, video.videoHeight];
  if (!w || !h) return null;
  let [x, y, out] = [0, 0, [w, h]];
  if (state.hello.whole) {
    const scale = Math.min(1, SENT_SIDE / Math.min(w, h));
    out = [Math.round(w * scale), Math.round(h * scale)];
  } else {
    const [cw, ch] = [Math.min(w, (h * width) / height), Math.min(h, (w * height) / width)];
    const scale = Math.min(1, SENT_SIDE / Math.min(width, height));
    [x, y, w, h, out] = [(w - cw) / 2, (h - ch) / 2, cw, ch, [Math.round(width * scale), Math.round(height * scale)]];
  }
  if (grabbed.width !== out[0] || grabbed.height !== out[1]) Object.assign(grabbed, { width: out[0], height: out[1] });
  grabbed.getContext("2d").drawImage(video, x, y, w, h, 0, 0, out[0], out[1]);
  const blob = await new Promise((resolve) => grabbed.toBlob(resolve, "image/jpeg", 0.85));
  return blob && blob.arrayBuffer();
}

// ---- frames

async function arrived(data) {
  const view = new DataView(data);
  if (data.byteLength < FRAME_HEAD || view.getUint8(0) !== VERSION || view.getUint8(1) !== FRAME) return;
  const flags = view.getUint16(2, true), index = view.getUint32(4, true);
  const number = view.getUint32(8, true), middle = FRAME_HEAD + view.getUint32(28, true);
  if (index > state.lastIndex + 1 && state.lastIndex >= 0) state.skipped += index - state.lastIndex - 1;
  state.lastIndex = index;
  const frame = {
    isKeyframe: Boolean(flags & KEYFRAME),
    isHeld: Boolean(flags & HELD),
    isGuided: Boolean(flags & GUIDED),
    reach: view.getFloat32(24, true),
    sentAt: number ? view.getFloat64(12, true) : null,
    delay: view.getFloat32(20, true),
    pictures: Promise.all([picture(data, FRAME_HEAD, middle), picture(data, middle, data.byteLength)]),
  };
  state.frames.push(frame);
  const now = performance.now();
  if (now - state.arrivals[state.arrivals.length - 1] > 1000) state.arrivals = []; // a pause says nothing of the rate
  state.arrivals.push(now);
  if (state.arrivals.length > 60) state.arrivals.shift();
  // A gap comes at once; frames are shown evenly, and the oldest left out where they come faster than they are shown.
  for (; state.frames.length > MOST_WAITING; state.skipped++) drop(state.frames.shift());
}

function drop(frame) {
  frame.pictures.then((pictures) => pictures.forEach((one) => one.close()), () => {});
}

function picture(data, from, to) {
  return createImageBitmap(new Blob([new Uint8Array(data, from, to - from)], { type: "image/jpeg" }));
}

function pace(now) {
  // Faster where more frames wait, slower where they run out: the queue stays at about a gap.
  const wanted = state.settings.causal ? 1 : Math.max(2, state.settings.gap || 4);
  const rate = measuredRate();
  if (rate) state.interval = (1000 / rate) * Math.max(0.5, Math.min(1.5, 1 + 0.12 * (wanted - state.frames.length)));
  if (state.frames.length && now - state.shownAt >= state.interval - 4) {
    state.shownAt = now - state.shownAt > 2 * state.interval ? now : state.shownAt + state.interval;
    show(state.frames.shift());
  }
  requestAnimationFrame(pace);
}

function measuredRate() {
  const { arrivals } = state;
  if (arrivals.length < 8) return 0;
  return (1000 * (arrivals.length - 1)) / Math.max(1, arrivals[arrivals.length - 1] - arrivals[0]);
}

async function show(frame) {
  let pictures;
  try { pictures = await frame.pictures; } catch { return; }
  const [condition, output] = pictures;
  const now = performance.now();
  draw($("condition"), condition);
  draw($("output"), output);
  if (frame.isKeyframe) draw($("keyframe"), output);
  $("mark").hidden = !frame.isKeyframe;
  pictures.forEach((one) => one.close());
  drawCursor();
  if (!Number.isNaN(frame.reach)) state.reaches.push(frame.reach);
  while (state.reaches.length > 25) state.reaches.shift();
  state.heldSince = frame.isHeld ? state.heldSince || now : null;
  state.isGuided = frame.isGuided;
  state.delays.push({ ms: frame.sentAt === null ? frame.delay : now - frame.sentAt, isKeyframe: frame.isKeyframe });
  if (state.delays.length > PLOTTED) state.delays.shift();
  state.times.push(now);
  while (state.times.length && now - state.times[0] > 2000) state.times.shift();
}

function draw(canvas, bitmap) {
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
}

// ---- figures

function figures() {
  const now = performance.now();
  while (state.times.length && now - state.times[0] > 2000) state.times.shift();
  $("fps").textContent = state.times.length ? (state.times.length / 2).toFixed(1) : "–";
  people(now);
  const sorted = state.delays.map((one) => one.ms).sort((a, b) => a - b);
  $("delay").textContent = sorted.length ? sorted[Math.floor(sorted.length / 2)].toFixed(0) : "–";
  plot(sorted);
}

// How far the driver lies from what was trained, and whether anybody is found.
function people(now) {
  const { reaches, heldSince, hello } = state;
  const middle = [...reaches].sort((a, b) => a - b)[Math.floor(reaches.length / 2)];
  if (middle !== undefined) {
    $("reach").textContent = middle.toFixed(2);
    $("reachbar").value = middle;
  }
  const isLost = heldSince !== null && now - heldSince > 700;
  if (isLost === $("nobody").hidden) {
    $("nobody").hidden = !isLost;
    $("nobody").textContent = isLost ? "Nobody is found, and the last condition is held: come nearer, face the camera, and see to light." : "";
  }
  $("unguided").hidden = !hello || !hello.guidance || state.isGuided || !state.delays.length;
}

function plot(sorted) {
  const canvas = $("plot"), context = canvas.getContext("2d");
  if (canvas.width !== canvas.clientWidth) canvas.width = canvas.clientWidth;
  const { width, height } = canvas;
  context.clearRect(0, 0, width, height);
  if (!sorted.length) return;
  const top = Math.max(20, 1.1 * sorted[Math.floor(0.98 * (sorted.length - 1))]);
  const x = (i) => (i / (PLOTTED - 1)) * width, y = (ms) => height - 2 - (Math.min(ms, top) / top) * (height - 6);
  const colours = { line: getComputedStyle($("delay")).color, key: getComputedStyle($("mark")).backgroundColor };
  context.strokeStyle = colours.line;
  context.globalAlpha = 0.6;
  context.lineWidth = 1.5;
  context.beginPath();
  state.delays.forEach((one, i) => (i ? context.lineTo(x(i), y(one.ms)) : context.moveTo(x(i), y(one.ms))));
  context.stroke();
  context.globalAlpha = 1;
  context.fillStyle = colours.key;
  state.delays.forEach((one, i) => { if (one.isKeyframe) context.fillRect(x(i) - 1.5, y(one.ms) - 1.5, 3, 3); });
  context.fillStyle = colours.line;
  context.font = "11px system-ui, sans-serif";
  context.fillText(`${top.toFixed(0)} ms`, 2, 11);
}

// ---- brush

function offerClasses(classes) {
  const all = [...classes.map((one, label) => ({ ...one, label })), { name: "rub out", color: null, label: -1 }];
  $("classes").replaceChildren(...all.map(({ name, color, label }) => {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("role", "radio");
    button.dataset.label = label;
    const patch = document.createElement("canvas");
    [patch.width, patch.height] = [8, 8];
    if (color) {
      const context = patch.getContext("2d");
      context.fillStyle = `rgb(${color.join()})`;
      context.fillRect(0, 0, 8, 8);
    }
    button.append(patch, name);
    button.onclick = () => chooseClass(label);
    return button;
  }));
  const canvas = $("condition");
  canvas.classList.add("paintable");
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-label", "Label map to paint on");
  canvas.setAttribute("aria-describedby", "brushhelp");
  $("hint").textContent = "paint here";
  chooseClass(state.brush.label);
  setSize(Math.max(2, Math.round(Math.min(...state.hello.size) / 10)));
}

function chooseClass(label) {
  state.brush.label = label;
  for (const button of $("classes").children) {
    const isChosen = Number(button.dataset.label) === label;
    button.setAttribute("aria-checked", String(isChosen));
    button.tabIndex = isChosen ? 0 : -1;
  }
}

$("classes").onkeydown = (event) => {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const buttons = [...$("classes").children], here = buttons.indexOf(document.activeElement);
  const next = buttons[(here + step + buttons.length) % buttons.length];
  next.focus();
  next.click();
};

function setSize(size) {
  state.brush.size = Math.max(2, Math.min(64, size));
  $("size").value = state.brush.size;
  $("sizeshown").textContent = state.brush.size;
}

function place(event) {
  const canvas = $("condition"), box = canvas.getBoundingClientRect();
  const at = [((event.clientX - box.left) / box.width) * canvas.width, ((event.clientY - box.top) / box.height) * canvas.height];
  return at.map((value) => Math.max(-4000, Math.min(16000, Math.round(10 * value) / 10)));
}

function paint(point) {
  const brush = state.brush;
  if (brush.last) brush.points.push(point);
  else brush.points = [point];
  brush.last = point;
}

// Points are gathered for a moment, so that a quick hand does not send more than the server takes.
function flushBrush() {
  const brush = state.brush;
  if (!brush.points.length) return;
  const { label, size, begins } = brush;
  send("stroke", { label, size, begins, points: brush.points.slice(0, 256) });
  brush.points = [brush.points[brush.points.length - 1]];
  brush.begins = false;
}

function endStroke() {
  const brush = state.brush;
  if (brush.last && (brush.points.length > 1 || brush.begins)) flushBrush();
  Object.assign(brush, { last: null, points: [], begins: true });
  send("settings");
}

setInterval(() => { if (state.brush.last && (state.brush.begins || state.brush.points.length > 1)) flushBrush(); }, 40);

$("condition").onpointerdown = (event) => {
  if (!state.hello || !state.hello.classes.length || event.button) return;
  $("condition").setPointerCapture(event.pointerId);
  state.brush.cursor = null;
  paint(place(event));
};
$("condition").onpointermove = (event) => { if (state.brush.last) paint(place(event)); };
$("condition").onpointerup = $("condition").onpointercancel = () => { if (state.brush.last) endStroke(); };

$("condition").onkeydown = (event) => {
  if (!state.hello || !state.hello.classes.length) return;
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const brush = state.brush, [height, width] = state.hello.size;
  if (event.key in moves) {
    const step = event.shiftKey ? 1 : Math.max(1, brush.size / 2), [dx, dy] = moves[event.key];
    const [x, y] = brush.cursor || [width / 2, height / 2];
    brush.cursor = [Math.max(0, Math.min(width - 1, x + dx * step)), Math.max(0, Math.min(height - 1, y + dy * step))];
    if (brush.last) paint(brush.cursor);
    drawCursor();
  } else if (event.key === "Enter") {
    brush.cursor = brush.cursor || [width / 2, height / 2];
    if (!brush.last) paint(brush.cursor);
  } else return;
  event.preventDefault();
};
$("condition").onkeyup = (event) => { if (event.key === "Enter" && state.brush.last) endStroke(); };
$("condition").onblur = () => { if (state.brush.last) endStroke(); state.brush.cursor = null; };

function drawCursor() {
  if (!state.brush.cursor) return;
  const context = $("condition").getContext("2d"), [x, y] = state.brush.cursor;
  for (const [colour, dashes] of [["#000", []], ["#fff", [3, 3]]]) {
    context.strokeStyle = colour;
    context.setLineDash(dashes);
    context.beginPath();
    context.arc(x, y, state.brush.size / 2, 0, 2 * Math.PI);
    context.stroke();
  }
  context.setLineDash([]);
}

// ---- recordings

$("record").onclick = () => {
  if (state.recorder) { state.recorder.stop(); return; }
  if (!window.MediaRecorder) { say("This browser cannot record."); return; }
  const kinds = ["video/webm;codecs=vp9", "video/webm;codecs=vp8", "video/webm", "video/mp4"];
  const mimeType = kinds.find((kind) => MediaRecorder.isTypeSupported(kind));
  state.parts = [];
  state.recorder = new MediaRecorder($("output").captureStream(), mimeType ? { mimeType, videoBitsPerSecond: 6e6 } : {});
  state.recorder.ondataavailable = (event) => { if (event.data.size) state.parts.push(event.data); };
  state.recorder.onstop = () => {
    const kind = state.recorder.mimeType || "video/webm";
    const isMatroska = kind.startsWith("video/webm");
    offer(new Blob(isMatroska ? [...state.parts, marking()] : state.parts, { type: kind }), isMatroska ? "webm" : "mp4");
    state.recorder = null;
    state.parts = [];
    $("record").textContent = "Record";
    $("record").classList.remove("chosen");
  };
  state.recorder.start(1000);
  $("record").textContent = "Stop recording";
  $("record").classList.add("chosen");
};

// A Matroska element "Tags" behind the last cluster: what fastv2v writes into the metadata of every video it makes.
function marking() {
  const text = (value) => new TextEncoder().encode(value);
  const element = (id, ...parts) => {
    const length = parts.reduce((sum, part) => sum + part.length, 0);
    const size = Array.from({ length: 7 }, (_, i) => Math.floor(length / 2 ** (8 * (6 - i))) % 256);
    return Uint8Array.from([...id, 0x01, ...size, ...parts.flatMap((part) => [...part])]);
  };
  const simple = element([0x67, 0xc8], element([0x45, 0xa3], text("COMMENT")), element([0x44, 0x87], text(MARK)));
  return element([0x12, 0x54, 0xc3, 0x67], element([0x73, 0x73], element([0x63, 0xc0]), simple));
}

function offer(blob, ending) {
  const link = $("download");
  if (link.href) URL.revokeObjectURL(link.href);
  link.href = URL.createObjectURL(blob);
  link.download = `${state.hello.name}-synthesised.${ending}`;
  link.textContent = `Download ${link.download} (${(blob.size / 1e6).toFixed(1)} MB)`;
  link.hidden = false;
}

$("still").onclick = () => $("output").toBlob(async (blob) => { if (blob) offer(await markedPng(blob), "png"); });

// The same mark in a PNG file: a comment behind the header, as fastv2v/mark.py writes it.
async function markedPng(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer()), header = 33;
  const body = new TextEncoder().encode(`iTXtComment${"\0".repeat(5)}${MARK}`);
  const chunk = new Uint8Array(body.length + 8), view = new DataView(chunk.buffer);
  view.setUint32(0, body.length - 4);
  chunk.set(body, 4);
  view.setUint32(4 + body.length, crc32(body));
  return new Blob([bytes.subarray(0, header), chunk, bytes.subarray(header)], { type: "image/png" });
}

function crc32(bytes) {
  let crc = ~0;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}

// ---- controls and keys

for (const id of ["engine", "grade"]) $(id).onchange = () => { say(""); send("settings", { [id]: $(id).value }); };
$("gap").onchange = () => send("settings", { gap: Number($("gap").value) });
$("causal").onchange = () => send("settings", { causal: $("causal").checked });
$("hold").onclick = () => send("hold", { on: !state.settings.held });
$("restart").onclick = () => send("restart");
$("undo").onclick = () => send("undo");
$("clear").onclick = () => send("clear");
$("size").oninput = () => setSize(Number($("size").value));

document.addEventListener("keydown", (event) => {
  const isTyping = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if ((event.ctrlKey || event.metaKey) && event.key === "z") { event.preventDefault(); send("undo"); return; }
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === " " && !/^(BUTTON|A)$/.test(event.target.tagName)) { event.preventDefault(); $("hold").click(); }
  else if (event.key === "r") $("restart").click();
  else if (event.key === "[" || event.key === "]") setSize(state.brush.size + (event.key === "]" ? 2 : -2));
  else if (state.hello && /^[1-9]$/.test(event.key) && Number(event.key) <= state.hello.classes.length) {
    chooseClass(Number(event.key) - 1);
  }
});

window.addEventListener("pagehide", () => { state.ended = true; stopPictures(); });

connect();
requestAnimationFrame(pace);
setInterval(figures, 500);
