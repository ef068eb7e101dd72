// Plays a policy for a Python process: arguments LOADER MODULE; sizes as one line of JSON, then binary frames.
//
// A question is the number of rows as uint32, their observations (float32), their first flags (bytes) and the states
// they carry; the answer is their head's numbers (float32), their actions (4 bytes each) and their states.
import { readFileSync, readSync, writeSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [loader, module] = process.argv.slice(2);
const { load } = await import(pathToFileURL(loader).href);
const policy = await load(readFileSync(module));
const sizes = { obs: policy.obsSize, params: policy.paramsSize, actions: policy.actionSize };
const fresh = Array.from(policy.state);
say(Buffer.from(`${JSON.stringify({ ...sizes, whole: policy.whole, fresh })}\n`));

for (let head = hear(4); head; head = hear(4)) {
  say(answer(head.readUInt32LE(0)));
}

function answer(rows) {
  const width = policy.state.length;
  const obs = hear(rows * sizes.obs * 4);
  const first = hear(rows);
  const states = hear(rows * width);
  const params = new Float32Array(rows * sizes.params);
  const actions = new (policy.whole ? Int32Array : Float32Array)(rows * sizes.actions);
  const copied = obs.buffer.slice(obs.byteOffset, obs.byteOffset + obs.length); // aligned to 4 bytes
  for (let row = 0; row < rows; row++) {
    policy.state.set(states.subarray(row * width, (row + 1) * width));
    if (first[row]) policy.reset();
    const action = policy.step(new Float32Array(copied, row * sizes.obs * 4, sizes.obs));
    actions.set(typeof action === "number" ? [action] : action, row * sizes.actions);
    params.set(policy.params(), row * sizes.params);
    states.set(policy.state, row * width);
  }
  return Buffer.concat([Buffer.from(params.buffer), Buffer.from(actions.buffer), states]);
}

/** Exactly `size` bytes of standard input, or null where it ended. */
function hear(size) {
  const buffer = Buffer.alloc(size);
  for (let at = 0; at < size; ) {
    const count = readSync(0, buffer, at, size - at, null);
    if (count === 0) return null;
    at += count;
  }
  return buffer;
}

function say(buffer) {
  for (let at = 0; at < buffer.length; ) at += writeSync(1, buffer, at);
}
