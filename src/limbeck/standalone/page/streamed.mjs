// An environment that `limbeck play` steps on this machine: one question, one answer; the page's address is the secret.

function streamedWorld() {
  let episode = 0;
  let picture = null;
  const ask = async (what, body) => {
    const answer = await fetch(what, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      cache: "no-store",
    }).catch(() => null);
    if (answer === null) throw new Error("limbeck play has ended: start it again, then open its new address.");
    const told = await answer.json();
    if (!answer.ok) throw new Error(told.error);
    if (told.picture) picture = await decoded(told.picture);
    return told;
  };
  return {
    async reset(seed) {
      const told = await ask("reset", { seed });
      episode = told.episode;
      return told;
    },
    step: (action, drawn) => ask("step", { episode, action, drawn }),
    draw(pen, { width, height }) {
      if (!picture) return;
      const scale = Math.min(width / picture.width, height / picture.height);
      const [w, h] = [picture.width * scale, picture.height * scale];
      pen.imageSmoothingEnabled = scale < 2; // small pictures keep their pixels
      pen.clearRect(0, 0, width, height);
      pen.drawImage(picture, (width - w) / 2, (height - h) / 2, w, h);
    },
  };
}

function decoded(base64) {
  return createImageBitmap(new Blob([fromBase64(base64)], { type: "image/png" }));
}

function fromBase64(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

export { streamedWorld, fromBase64 };
