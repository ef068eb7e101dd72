// CartPole as Gymnasium computes it (classic_control/cartpole.py, explicit Euler): the same operations in the same order
// in float64. `physics` holds the constants of the environment, read from it; a state is [x, x', theta, theta'].

/** The state after one step; action 1 pushes to the right, 0 to the left. */
function cartpoleStep(physics, state, action) {
  let [x, xDot, theta, thetaDot] = state;
  const force = action === 1 ? physics.forceMag : -physics.forceMag;
  const cos = Math.cos(theta);
  const sin = Math.sin(theta);
  const temp = (force + physics.polemassLength * (thetaDot * thetaDot) * sin) / physics.totalMass;
  const thetaAcc =
    (physics.gravity * sin - cos * temp) /
    (physics.length * (4.0 / 3.0 - (physics.masspole * (cos * cos)) / physics.totalMass));
  const xAcc = temp - (physics.polemassLength * thetaAcc * cos) / physics.totalMass;
  x = x + physics.tau * xDot;
  xDot = xDot + physics.tau * xAcc;
  theta = theta + physics.tau * thetaDot;
  thetaDot = thetaDot + physics.tau * thetaAcc;
  return [x, xDot, theta, thetaDot];
}

/** Whether the cart left its track or the pole fell. */
function cartpoleFell(physics, [x, , theta]) {
  return x < -physics.xThreshold || x > physics.xThreshold || theta < -physics.thetaThreshold || theta > physics.thetaThreshold;
}

/** CartPole in this page. `starts` maps a seed to the state that Gymnasium's reset gives for it. */
function cartpoleWorld(physics, starts) {
  let state = [0, 0, 0, 0];
  let steps = 0;
  const seen = () => Array.from(Float32Array.from(state));
  return {
    async reset(seed) {
      state = starts[seed];
      steps = 0;
      return { obs: seen() };
    },
    async step(action) {
      state = cartpoleStep(physics, state, action[0]);
      steps += 1;
      return { obs: seen(), reward: 1, terminated: cartpoleFell(physics, state), truncated: steps >= (physics.maxSteps ?? Infinity) };
    },
    /** Somebody knocks against the cart: its speed changes at once, in m/s. */
    push(speed) {
      state = [state[0], state[1] + speed, state[2], state[3]];
      return seen();
    },
    draw: (pen, size, colours) => cartpoleDraw(physics, state, pen, size, colours),
  };
}

function cartpoleDraw(physics, [x, , theta], pen, { width, height }, colours) {
  const scale = width / (2 * physics.xThreshold); // pixels per metre
  const ground = height * 0.82;
  const cart = { width: width * 0.085, height: width * 0.05 };
  const middle = width / 2 + x * scale;
  const axle = ground - cart.height - width * 0.008;
  pen.clearRect(0, 0, width, height);
  pen.fillStyle = colours.line;
  pen.fillRect(0, ground, width, Math.max(2, width * 0.004));
  for (const place of [-2, -1, 0, 1, 2]) {
    pen.fillRect(width / 2 + place * scale - 1, ground, 2, width * 0.016);
  }
  pen.fillStyle = colours.ink;
  pen.beginPath();
  pen.roundRect(middle - cart.width / 2, axle - cart.height * 0.15, cart.width, cart.height, cart.height * 0.18);
  pen.fill();
  for (const side of [-1, 1]) {
    pen.beginPath();
    pen.arc(middle + side * cart.width * 0.28, ground - width * 0.008, width * 0.0135, 0, 2 * Math.PI);
    pen.fill();
  }
  const long = 2 * physics.length * scale;
  pen.strokeStyle = colours.accent;
  pen.lineWidth = width * 0.014;
  pen.lineCap = "round";
  pen.beginPath();
  pen.moveTo(middle, axle);
  pen.lineTo(middle + long * Math.sin(theta), axle - long * Math.cos(theta));
  pen.stroke();
  pen.fillStyle = colours.paper;
  pen.beginPath();
  pen.arc(middle, axle, width * 0.005, 0, 2 * Math.PI);
  pen.fill();
}

export { cartpoleStep, cartpoleFell, cartpoleWorld };
