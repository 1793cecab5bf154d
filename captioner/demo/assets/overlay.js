// Draw attention maps over an image, with the same arithmetic as captioner.image.visualize.

// Return the first input cell and the weights of each output pixel: bicubic (a = -1/2), each cell
// covering an equal share of the image, weights renormalised at the borders.
function taps(cells, pixels) {
  const scale = cells / pixels;
  const stretch = Math.max(1, scale);
  const kernel = (x) => {
    x = Math.abs(x);
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
    return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
  };
  return Array.from({ length: pixels }, (_, pixel) => {
    const centre = (pixel + 0.5) * scale;
    const first = Math.max(0, Math.floor(centre - 2 * stretch + 0.5));
    const last = Math.min(cells, Math.floor(centre + 2 * stretch + 0.5));
    const weights = [];
    for (let cell = first; cell < last; cell++) weights.push(kernel((cell + 0.5 - centre) / stretch));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    return { first, weights: weights.map((weight) => weight / total) };
  });
}

// Spread a map of rows x columns cells (bytes, row by row) over width x height pixels, peak 1.
function spread(cells, [rows, columns], width, height) {
  const across = taps(columns, width);
  const down = taps(rows, height);
  const wide = new Float32Array(rows * width);
  for (let row = 0; row < rows; row++) {
    across.forEach(({ first, weights }, x) => {
      let sum = 0;
      weights.forEach((weight, i) => (sum += weight * cells[row * columns + first + i]));
      wide[row * width + x] = sum;
    });
  }
  const result = new Float32Array(height * width);
  const least = Math.min(...cells);
  const most = Math.max(...cells);
  let peak = 0;
  down.forEach(({ first, weights }, y) => {
    for (let x = 0; x < width; x++) {
      let sum = 0;
      weights.forEach((weight, i) => (sum += weight * wide[(first + i) * width + x]));
      sum = Math.min(most, Math.max(least, sum)); // bicubic overshoots beside sharp cells
      result[y * width + x] = sum;
      peak = Math.max(peak, sum);
    }
  });
  return peak > 0 ? result.map((value) => value / peak) : result;
}

// Paint weights (0 to 1) on a canvas that covers the image. `presence` fades all of it.
function paint(canvas, weights, { style, strength, presence, ramp }) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  const pixels = image.data;
  const heat = style === "heatmap";
  for (let i = 0, p = 0; i < weights.length; i++, p += 4) {
    const weight = weights[i];
    if (heat) {
      const colour = 3 * Math.round(255 * weight);
      pixels[p] = ramp[colour];
      pixels[p + 1] = ramp[colour + 1];
      pixels[p + 2] = ramp[colour + 2];
      pixels[p + 3] = 255 * presence * strength * weight ** 0.75;
    } else {
      pixels[p + 3] = 255 * presence * strength * (1 - weight); // black: dims low weights
    }
  }
  context.putImageData(image, 0, 0);
}

function bytes(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}
