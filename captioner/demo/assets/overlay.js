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
function paint(canvas, weights, { style, strength, presence, look }) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  const pixels = image.data;
  const heat = style === "heatmap";
  for (let i = 0, p = 0; i < weights.length; i++, p += 4) {
    const level = Math.round(255 * weights[i]);
    if (heat) {
      pixels.set(look.heat.subarray(4 * level, 4 * level + 3), p);
      pixels[p + 3] = presence * strength * look.heat[4 * level + 3];
    } else {
      pixels[p + 3] = presence * strength * (255 - look.light[level]); // black: dims low weights
    }
  }
  context.putImageData(image, 0, 0);
}

// Find the line where weights cross a level, as pieces [x, y, x, y] in shares of width and height.
function contour(weights, width, height, level) {
  const pieces = [];
  const at = (x, y) => weights[y * width + x];
  for (let y = 0; y + 1 < height; y++) {
    for (let x = 0; x + 1 < width; x++) {
      // Where the level is crossed on the four sides of the square between four pixels' centres.
      const corners = [[x, y], [x + 1, y], [x + 1, y + 1], [x, y + 1]];
      const ends = [];
      corners.forEach(([x0, y0], side) => {
        const [x1, y1] = corners[(side + 1) % 4];
        const [from, to] = [at(x0, y0), at(x1, y1)];
        if (from >= level === to >= level) return;
        const t = (level - from) / (to - from);
        ends.push((x0 + t * (x1 - x0) + 0.5) / width, (y0 + t * (y1 - y0) + 0.5) / height);
      });
      for (let end = 0; end + 3 < ends.length; end += 4) pieces.push(ends.slice(end, end + 4));
    }
  }
  return pieces;
}

// Draw such a line: white, on a wider dark one.
function stroke(canvas, pieces, presence) {
  const context = canvas.getContext("2d");
  const [width, height] = [canvas.width, canvas.height];
  const line = new Path2D();
  for (const [x0, y0, x1, y1] of pieces) {
    line.moveTo(x0 * width, y0 * height);
    line.lineTo(x1 * width, y1 * height);
  }
  const thin = Math.max(width, height) / 380;
  context.lineCap = "round";
  for (const [colour, thick, opacity] of [["black", 3.2 * thin + 2, 0.45], ["white", thin + 1, 1]]) {
    context.globalAlpha = presence * opacity;
    context.strokeStyle = colour;
    context.lineWidth = thick;
    context.stroke(line);
  }
  context.globalAlpha = 1;
}

function bytes(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}
