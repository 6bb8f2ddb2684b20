// What a page can learn of the device it runs on. What a browser does not tell is null, never 0.

const SIMD = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10];
const FEATURES = {
  simd: [...SIMD, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11],
  "relaxed-simd": [...SIMD, 15, 1, 13, 0, 65, 1, 253, 15, 65, 2, 253, 15, 253, 128, 2, 11],
}; // the smallest modules that need them

const SOFTWARE = /swiftshader|llvmpipe|lavapipe|softpipe|software|basic render|warp/i;

function wasmFeatures() {
  const found = Object.keys(FEATURES).filter((name) => WebAssembly.validate(new Uint8Array(FEATURES[name])));
  return typeof SharedArrayBuffer === "undefined" ? found : [...found, "threads"];
}

// Milliseconds by which the clock moves on at least; coarse where the page is not isolated.
function clockStep() {
  let least = Infinity;
  for (let change = 0; change < 100; change++) {
    const start = performance.now();
    let now = start;
    while (now === start) now = performance.now();
    least = Math.min(least, now - start);
  }
  return least;
}

export async function graphics() {
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  if (!adapter) return null;
  const { vendor, architecture, device, description } = adapter.info;
  const words = [vendor, architecture, device, description].filter(Boolean).join(" ");
  return { name: words, software: Boolean(adapter.info.isFallbackAdapter) || SOFTWARE.test(words) };
}

async function hints() {
  const wanted = ["architecture", "bitness", "model", "platformVersion", "fullVersionList"];
  return (await navigator.userAgentData?.getHighEntropyValues(wanted).catch(() => null)) ?? {};
}

export async function deviceCard() {
  const found = await hints();
  return {
    user_agent: navigator.userAgent,
    platform: found.platform || navigator.platform || null,
    platform_version: found.platformVersion || null,
    architecture: found.architecture ? `${found.architecture}_${found.bitness}` : null,
    model: found.model || null,
    browser: (found.fullVersionList ?? []).filter(({ brand }) => !/not.?a.?brand/i.test(brand)).at(-1) ?? null,
    hardware_concurrency: navigator.hardwareConcurrency ?? null,
    device_memory_gib: navigator.deviceMemory ?? null,
    secure_context: isSecureContext,
    cross_origin_isolated: crossOriginIsolated,
    wasm: wasmFeatures(),
    clock_step_ms: clockStep(),
    webgpu: await graphics(),
  };
}
