// A policy in a browser or in node: no dependency, no network, no build step.
//
//   import { load } from "./policy.mjs";
//   const policy = await load(bytes);         // bytes of policy.wasm, as fetch or fs.readFileSync give them
//   policy.reset();                           // before the first observation of every episode
//   const action = policy.step(observation);  // as many numbers as policy.obsSize; contract.json says which

/** Compile the bytes of policy.wasm. Rejects what is no WebAssembly, or no policy. */
async function load(bytes) {
  const { instance } = await WebAssembly.instantiate(bytes, {});
  return bind(instance.exports);
}

/** The module's functions as a policy. */
function bind(wasm) {
  const numbers = ["obs", "params", "action", "state"];
  const counts = ["action_is_whole", "guard", "steps", "strange", "outside"];
  const needed = ["memory", ...numbers, ...numbers.map((name) => `${name}_size`), ...counts, "reset", "step"];
  const absent = needed.filter((name) => !(name in wasm));
  if (absent.length) throw new TypeError(`no policy: the module has no ${absent.join(", ")}`);
  const whole = Boolean(wasm.action_is_whole());
  const view = (kind, place, size) => new kind(wasm.memory.buffer, place, size); // the memory never grows
  const obs = view(Float32Array, wasm.obs(), wasm.obs_size());
  const params = view(Float32Array, wasm.params(), wasm.params_size());
  const action = view(whole ? Int32Array : Float32Array, wasm.action(), wasm.action_size());
  const state = view(Uint8Array, wasm.state(), wasm.state_size());
  const single = whole && action.length === 1;
  wasm.reset();
  return {
    obsSize: obs.length,
    paramsSize: params.length,
    actionSize: action.length,
    whole, // actions are whole numbers
    /** Bytes that are carried from step to step: save and restore them to play several episodes side by side. */
    state,
    /** Forget the episode. */
    reset() {
      wasm.reset();
    },
    /** The executed action: a number where there is one whole one, else an array of its numbers. */
    step(observation) {
      if (observation.length !== obs.length) {
        throw new RangeError(`the policy reads ${obs.length} numbers, ${observation.length} were given`);
      }
      obs.set(observation);
      wasm.step();
      return single ? action[0] : action.slice();
    },
    /** How the episode looked: its steps, and those of them in which the policy saw what training never saw.
     * level 0: not watched; 1: numbers that are not finite count; 2: numbers out of range as well. */
    guard() {
      return { level: wasm.guard(), steps: wasm.steps(), strange: wasm.strange() };
    },
    /** How many numbers of the last observation are such. */
    outside() {
      return wasm.outside();
    },
    /** What the head said in the last step: logits, action values or means. */
    params() {
      return params.slice();
    },
  };
}

export { load };
