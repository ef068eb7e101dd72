// The page: the student in WebAssembly meets its world, step by step, and one can look, wait and interfere.
import { load } from "./policy.mjs";
import { cartpoleWorld } from "./cartpole.mjs";
import { streamedWorld, fromBase64 } from "./streamed.mjs";

const facts = JSON.parse(document.getElementById("facts").textContent);
const at = (id) => document.getElementById(id);
const asked = new URLSearchParams(location.hash.slice(1)); // #seed=3&speed=max&episodes=1
const policy = await load(fromBase64(facts.wasm));
const world = facts.physics ? cartpoleWorld(facts.physics, facts.starts) : streamedWorld();
const canvas = at("stage");
const pen = canvas.getContext("2d");
canvas.style.aspectRatio = String(facts.aspect);
const PUSH = 0.5; // m/s
const FAST_DRAWN_EVERY = 25; // steps between pictures at full speed

const play = { seed: facts.seed, obs: [], steps: 0, return: 0, pushes: 0, paused: false, over: true, asked: null, played: 0 };

// ---------------------------------------------------------------- one episode after the other

async function run() {
  const most = Number(asked.get("episodes") ?? Infinity);
  let next = chosenSeed(asked.get("seed") ?? facts.seed);
  while (play.played < most) {
    next = await episode(next);
  }
  setPaused(true);
  at("status").textContent = "Done.";
}

/** Play until the end or until another seed is asked for; the seed that comes next. */
async function episode(seed) {
  Object.assign(play, { seed, steps: 0, return: 0, pushes: 0, over: false, asked: null });
  play.obs = (await world.reset(seed)).obs;
  policy.reset();
  at("seed").value = String(seed);
  show(null);
  at("status").textContent = `Playing seed ${seed}.`;
  while (play.asked === null) {
    await untilResumed();
    if (play.asked !== null) break;
    const began = performance.now();
    const action = policy.step(play.obs);
    const actions = typeof action === "number" ? [action] : Array.from(action);
    const fast = at("speed").value === "max";
    const told = await world.step(actions, !fast || play.steps % FAST_DRAWN_EVERY === 0);
    play.obs = told.obs;
    play.steps += 1;
    play.return += told.reward;
    const ended = told.terminated || told.truncated;
    if (!fast || ended || play.steps % FAST_DRAWN_EVERY === 0) show(actions);
    if (ended) {
      await finish(told);
      if (fast || play.asked !== null) break;
      await pause(1200);
      break;
    }
    await pause(fast ? 0 : 1000 / (facts.fps * Number(at("speed").value)) - (performance.now() - began));
  }
  return play.asked ?? following(seed);
}

async function finish(told) {
  play.over = true;
  play.played += 1;
  const row = at("played").insertRow(0);
  const pushes = play.pushes ? `, pushed ${play.pushes} ${play.pushes === 1 ? "time" : "times"}` : "";
  for (const text of [play.seed, number(play.return), play.steps, (told.terminated ? "ended" : "time limit") + pushes]) {
    row.insertCell().textContent = String(text);
  }
  at("none").hidden = true;
  at("status").textContent = `Seed ${play.seed}: return ${number(play.return)} after ${play.steps} steps.`;
  if (facts.served) await report();
}

/** Tell `limbeck play` what was reached; a page that outlives it plays on alone where it can. */
async function report() {
  const body = JSON.stringify({ seed: play.seed, return: play.return, steps: play.steps, pushes: play.pushes });
  const sent = fetch("played", { method: "POST", headers: { "Content-Type": "application/json" }, body });
  await sent.catch(() => (at("status").textContent += " limbeck play has ended; this page goes on alone."));
}

const following = (seed) => (facts.starts && !(seed + 1 in facts.starts) ? facts.seed : seed + 1);

function chosenSeed(text) {
  const seed = Number(text);
  const known = Number.isSafeInteger(seed) && seed >= 0 && (!facts.starts || seed in facts.starts);
  return known ? seed : facts.seed;
}

// ---------------------------------------------------------------- time

let wake = () => {};

function pause(milliseconds) {
  return new Promise((done) => {
    const timer = setTimeout(done, Math.max(0, milliseconds));
    wake = () => (clearTimeout(timer), done());
  });
}

async function untilResumed() {
  while (play.paused && play.asked === null) await pause(3_600_000);
}

function setPaused(paused) {
  play.paused = paused;
  at("pause").textContent = paused ? "Play" : "Pause";
  wake();
}

function restart(seed) {
  play.asked = seed;
  setPaused(false);
}

function push(speed) {
  if (!world.push || play.over) return;
  play.obs = world.push(speed);
  play.pushes += 1;
  at("status").textContent = `Pushed ${speed < 0 ? "left" : "right"} at step ${play.steps}.`;
  if (play.paused) show(null);
}

// ---------------------------------------------------------------- what is shown

const number = (value) => (Math.abs(value) >= 1e4 || (value !== 0 && Math.abs(value) < 1e-3) ? value.toExponential(2) : String(Math.round(value * 1000) / 1000));

/** Always as wide, so that columns do not flicker. */
const steady = (value) => (Math.abs(value) >= 1e4 ? value.toExponential(2) : value.toFixed(3).replace(/^-(0\.0+)$/, "$1"));

function colours() {
  const style = getComputedStyle(document.documentElement);
  return Object.fromEntries(["ink", "line", "accent", "paper"].map((name) => [name, style.getPropertyValue(`--${name}`)]));
}

function draw() {
  const width = Math.round(canvas.clientWidth * devicePixelRatio);
  if (canvas.width !== width) {
    canvas.width = width;
    canvas.height = Math.round(width / facts.aspect);
  }
  world.draw(pen, canvas, colours());
}

function show(actions) {
  at("return").textContent = number(play.return);
  at("steps").textContent = String(play.steps);
  at("action").textContent = actions === null ? "–" : actions.map(named).join(", ");
  const said = actions === null ? [] : Array.from(policy.params());
  const largest = Math.max(...said.map(Math.abs), 1e-6); // what the head says is compared with one another
  bars(at("observation"), play.obs, facts.observations, (i, size) => widest.set(i, Math.max(widest.get(i) ?? 1e-6, size)).get(i));
  bars(at("said"), said, facts.params, () => largest);
  const { steps, strange } = policy.guard();
  at("strange").textContent = steps ? `${strange} of ${steps}` : "–";
  draw();
}

const named = (action, place) => (policy.whole && facts.actions.length && place === 0 ? `${facts.actions[action] ?? action}` : number(action));

const widest = new Map(); // largest size seen of each number: its bar keeps its scale

function bars(list, values, names, scale) {
  const shown = Math.min(values.length, facts.rows);
  while (list.children.length < shown) list.append(bar());
  while (list.children.length > shown) list.lastElementChild.remove();
  for (let i = 0; i < shown; i++) {
    const [name, value, track] = list.children[i].children;
    name.textContent = names[i] ?? `${i}`;
    value.textContent = steady(values[i]);
    const share = (50 * values[i]) / scale(i, Math.abs(values[i]));
    track.firstElementChild.style.left = `${Math.min(50, 50 + share)}%`;
    track.firstElementChild.style.width = `${Math.abs(share)}%`;
  }
}

function bar() {
  const item = document.createElement("li");
  for (const kind of ["name", "value", "track"]) {
    const part = document.createElement("span");
    part.className = kind;
    item.append(part);
  }
  item.lastElementChild.setAttribute("aria-hidden", "true");
  item.lastElementChild.append(document.createElement("span"));
  return item;
}

// ---------------------------------------------------------------- controls

at("pause").addEventListener("click", () => setPaused(!play.paused));
at("restart").addEventListener("click", () => restart(chosenSeed(at("seed").value)));
at("next").addEventListener("click", () => restart(following(play.seed)));
at("speed").addEventListener("change", () => wake());
at("left").addEventListener("click", () => push(-PUSH));
at("right").addEventListener("click", () => push(PUSH));
at("seed").addEventListener("keydown", (event) => event.key === "Enter" && restart(chosenSeed(at("seed").value)));
document.addEventListener("keydown", (event) => {
  if (event.target.closest("input, select, button, summary, a") || event.ctrlKey || event.metaKey || event.altKey) return;
  const does = { ArrowLeft: () => push(-PUSH), ArrowRight: () => push(PUSH), " ": () => setPaused(!play.paused), r: () => restart(play.seed) }[event.key];
  if (!does) return;
  event.preventDefault();
  does();
});
new ResizeObserver(draw).observe(canvas);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
if (!world.push) at("pushes").hidden = true;
if (policy.guard().level < 2) at("guard").hidden = true;
if ([...at("speed").options].some((option) => option.value === asked.get("speed"))) at("speed").value = asked.get("speed");

try {
  await run();
} catch (error) {
  at("status").textContent = `Stopped. ${error.message}`;
  at("status").classList.add("wrong");
}
