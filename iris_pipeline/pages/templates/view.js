// Plays the notebook for NiiVue's widget (its interface: anywidget's initialize and render over a model), shows one
// case at a time, and keeps list, sliders and keys in step.
const content = JSON.parse(document.getElementById("content").textContent);
const held = JSON.parse(document.getElementById("held").textContent);
const packed = document.getElementById("script").textContent.trim();
const $ = (id) => document.getElementById(id);
const say = (text, warn = false) => { $("told").textContent = text; $("told").classList.toggle("warn", warn); };

const unpack = async (text) => {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
};
const fetched = async (address) => {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error((await answer.text()).trim());
  return answer;
};
const layer = async (number, name) => packed
  ? unpack(held[`${number}/${name}`])
  : new Uint8Array(await (await fetched(`case/${number}/${name}.nii`)).arrayBuffer());
const centre = async (number) => packed ? held[`${number}/centre`] : (await fetched(`case/${number}/centre.json`)).json();

// The smallest model that the widget takes: values, listeners, and no kernel behind it.
const models = new Map();
const manager = { get_model: async (id) => models.get(id) };
class Model {
  constructor(values) { this.values = values; this.listeners = new Map(); this.widget_manager = manager; this._comm_live = false; }
  get(name) { return this.values[name]; }
  set(name, value) { this.values[name] = value; }
  save_changes() {}
  send_sync_message() {}
  send(message) { this.onmessage?.(message); }
  on(event, listener) { this.listeners.set(event, [...(this.listeners.get(event) ?? []), listener]); }
  off(event, listener) { this.listeners.set(event, (this.listeners.get(event) ?? []).filter((kept) => listener && kept !== listener)); }
  change(name, value) { this.set(name, value); for (const told of this.listeners.get(`change:${name}`) ?? []) told(); }
  tell(type, ...data) { for (const told of this.listeners.get("msg:custom") ?? []) told({ type, data }, []); }
}

const CLASS_COLOURS = ["#5fb0ec", "#ff8f4f", "#2fcf9e", "#e89bc9", "#c9ecff", "#e4cf4c", "#b9a0f5", "#ffffff"];
const LAYER_COLOURS = { truth: "#3fb2ff", prediction: "#ffa01f" };
const classes = content.classes;
const colourOf = (name, index) => $("colours").value === "class" ? CLASS_COLOURS[index % CLASS_COLOURS.length] : LAYER_COLOURS[name];
const channels = (hex) => [1, 3, 5].map((at) => Number.parseInt(hex.slice(at, at + 2), 16));
const lookup = (name) => ({
  lut: [0, 0, 0, 0, ...classes.flatMap((_, index) => [...channels(colourOf(name, index)), 255])],
  min: 0, max: classes.length, labels: ["", ...classes],
});

const options = () => ({
  sliceType: Number($("planes").value), isRadiologicalConvention: true, isColorbar: false, show3Dcrosshair: true,
  multiplanarShowRender: 0, multiplanarLayout: 0, tileMargin: 4, crosshairWidth: 0.35, crosshairColor: [0.9, 0.9, 0.9, 0.7], backColor: [0.05, 0.06, 0.075, 1],
  dragMode: 1, isOrientationTextVisible: true, isResizeCanvas: true, loadingText: "", isNearestInterpolation: false, yoke3Dto2DZoom: true,
});
const view = new Model({
  opts: null, volumes: [], meshes: [], height: 400, background_masks_overlays: 0, draw_lut: null, draw_opacity: 0.8,
  draw_fill_overwrites: true, graph: null, scene: null, overlay_outline_width: 0, overlay_alpha_shader: 1, this_model_id: null,
});
let arrived = 0;
let waiting = null;
view.onmessage = ({ event, data }) => {
  if (event === "image_loaded") { arrived += 1; if (waiting && arrived >= waiting.count) waiting.done(); }
  if (event === "location_change") locate(data);
};
const loaded = (count) => new Promise((done, fail) => {
  arrived = 0;
  waiting = { count, done };
  setTimeout(() => fail(new Error("The viewer did not take the case.")), 60000);
});
const volumeModel = (id, name, data, more) => {
  const model = new Model({
    id, name: `${name}.nii`, data, url: null, path: { name: "" }, paired_img_path: { name: "" }, paired_img_url: "", paired_img_data: null,
    colormap: "gray", colormap_negative: "", colormap_type: 0, colormap_invert: false, colormap_label: null, colorbar_visible: false,
    opacity: 1, cal_min: undefined, cal_max: undefined, cal_min_neg: undefined, cal_max_neg: undefined, frame_4d: 0,
    modulation_image: null, modulate_alpha: 0, ...more,
  });
  models.set(id, model);
  return model;
};

let current = -1;
let wanted = -1;
let busy = false;
let shown = {};
const shows = (name) => $(name).checked ? Number($("opacity").value) : 0;
const locate = (place) => {
  const values = Object.fromEntries((place.values ?? []).map((value) => [value.name.replace(/\.nii$/, ""), value.value]));
  const named = (value) => value ? classes[Math.round(value) - 1] ?? "background" : "background";
  const parts = [`${place.mm.slice(0, 3).map((mm) => mm.toFixed(1)).join(", ")} mm`];
  if (values.image !== undefined) parts.push(`value ${Number(values.image).toPrecision(4)}${content.modality === "CT" ? " HU" : ""}`);
  for (const name of ["truth", "prediction"]) if (shown[name]) parts.push(`${name}: ${named(values[name])}`);
  say(parts.join("  ·  "));
};
// Each change makes NiiVue draw everything anew, so only what changed is told.
const change = (name, value) => { for (const map of ["truth", "prediction"]) shown[map]?.change(name, value(map)); };
const legend = () => {
  const dice = content.cases[current]?.dice ?? {};
  const named = classes.map((name) => dice[name] === undefined ? name : `${name} ${dice[name].toFixed(3)}`);
  const byClass = $("colours").value === "class";
  const spots = named.map((text, index) => [byClass ? CLASS_COLOURS[index % CLASS_COLOURS.length] : null, text]);
  if (!byClass) spots.unshift(...Object.entries(LAYER_COLOURS).map(([name, colour]) => [colour, name]));
  $("legend").replaceChildren(...spots.map(([colour, text]) => {
    const line = document.createElement("span");
    line.setAttribute("role", "listitem");
    if (colour) {
      const spot = document.createElement("i");
      spot.className = "spot";
      spot.style.background = colour;
      line.append(spot);
    }
    line.append(text);
    return line;
  }));
};
const show = async (number) => {
  wanted = Math.min(Math.max(number, 0), content.cases.length - 1);
  if (busy || wanted === current) return;
  busy = true;
  try {
    while (wanted !== current) {
      const now = wanted;
      const item = content.cases[now];
      [...$("cases").querySelectorAll("button")].forEach((button, index) => {
        if (index === now) { button.setAttribute("aria-current", "true"); button.scrollIntoView({ block: "nearest" }); } else button.removeAttribute("aria-current");
      });
      say(`Reading ${item.id} ...`);
      current = now;
      const names = item.truth ? ["image", "truth", "prediction"] : ["image", "prediction"];
      const [place, ...data] = await Promise.all([centre(now), ...names.map((name) => layer(now, name))]);
      view.change("volumes", []);
      await new Promise((next) => setTimeout(next, 0));
      models.clear();
      shown = {};
      names.forEach((name, index) => {
        const more = name === "image"
          ? { colormap_invert: content.modality === "PET" }
          : { opacity: shows(name), colormap_label: lookup(name) };
        shown[name] = volumeModel(`${now}-${name}`, name, data[index], more);
      });
      const whole = loaded(names.length);
      view.change("volumes", names.map((name) => `IPY_MODEL_${now}-${name}`));
      await whole;
      legend();
      view.change("scene", { crosshairPos: place, pan2Dxyzmm: [0, 0, 0, 1] });
      view.tell("draw_scene");
      $("truth").disabled = !item.truth;
      document.title = `${item.id}: ${content.title}`;
      document.documentElement.dataset.shown = item.id;
      say(`${item.id}${item.mean === null ? "" : `, mean Dice ${item.mean.toFixed(3)}`}`);
    }
  } catch (error) {
    say(error.message, true);
  } finally {
    busy = false;
  }
};

const listed = content.cases.map((item, number) => {
  const line = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  const name = document.createElement("span");
  name.textContent = item.id;
  button.append(name);
  if (item.mean !== null) {
    const score = document.createElement("b");
    score.textContent = item.mean.toFixed(3);
    score.title = "mean Dice";
    button.append(score);
  }
  button.addEventListener("click", () => show(number));
  line.append(button);
  return line;
});
$("cases").replaceChildren(...listed);
$("opacity").addEventListener("input", () => change("opacity", shows));
for (const name of ["truth", "prediction"]) $(name).addEventListener("input", () => shown[name]?.change("opacity", shows(name)));
$("colours").addEventListener("input", () => { change("colormap_label", lookup); legend(); });
$("planes").addEventListener("input", () => { view.change("opts", options()); view.tell("resize_listener"); view.tell("draw_scene"); });
$("next").addEventListener("click", () => show(wanted + 1));
$("previous").addEventListener("click", () => show(wanted - 1));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || ["INPUT", "SELECT"].includes(event.target.tagName) && event.key.startsWith("Arrow")) return;
  const flip = (name) => { if (!$(name).disabled) $(name).click(); };
  const keys = { n: () => show(wanted + 1), p: () => show(wanted - 1), t: () => flip("truth"), m: () => flip("prediction") };
  keys[event.key]?.();
});
const resized = () => { view.change("height", $("stage").clientHeight); view.tell("resize_listener"); };

try {
  if (!document.createElement("canvas").getContext("webgl2")) throw new Error("The viewer needs WebGL 2, which this browser does not offer here.");
  const address = packed ? URL.createObjectURL(new Blob([await unpack(packed)], { type: "text/javascript" })) : "./viewer.js";
  const { default: widget } = await import(address);
  view.values.opts = options();
  view.values.height = $("stage").clientHeight;
  await widget.initialize({ model: view });
  await widget.render({ model: view, el: $("stage") });
  addEventListener("resize", resized);
  resized();
  await show(0);
  if (content.notes.length) say(content.notes.join(" "), true);
} catch (error) {
  say(error.message, true);
}
