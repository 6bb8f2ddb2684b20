"""The page's style sheet, light and dark. Contrast of text is at least 4.5 to 1 in both."""

STYLE = """
:root { color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #16191d; --soft: #565e68; --line: #dfe3e8; --grid: #eceff2;
  --onnx: #2563eb; --openvino: #0f766e; --tflite: #b45309; --accent: #4338ca;
  --good: #15803d; --bad: #b91c1c; --open: #a16207; --good-bg: #ecfdf3; --bad-bg: #fef2f2; --open-bg: #fefbe8;
  --teacher: #b31b9a; --student: #2563eb; --control: #6b7280;
  --empty: #f1f3f5; --right: #166534; --wrong: #b91c1c; }
@media (prefers-color-scheme: dark) { :root {
  --page: #0f1216; --card: #171b21; --ink: #e8ebef; --soft: #a3acb8; --line: #2c333c; --grid: #252b33;
  --onnx: #7aa7ff; --openvino: #4fd1b8; --tflite: #f0a04b; --accent: #a5b4fc;
  --good: #5fd38a; --bad: #ff8a80; --open: #eac54f; --good-bg: #12261a; --bad-bg: #2b1516; --open-bg: #282210;
  --teacher: #f29be6; --student: #7aa7ff; --control: #a3acb8; --empty: #20262d; --right: #22834a; --wrong: #c23b34; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1320px; margin: 0 auto; padding: 28px 24px 64px; }
h1 { font-size: 26px; margin: 0 0 2px; letter-spacing: -0.01em; }
h2 { font-size: 18px; margin: 0 0 4px; }
h3 { font-size: 15px; margin: 22px 0 6px; }
p { margin: 6px 0 10px; max-width: 112ch; }
.soft { color: var(--soft); font-size: 13.5px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px;
  margin: 16px 0; }
.banner { border: 1px solid var(--open); background: var(--open-bg); border-radius: 8px; padding: 8px 14px;
  margin: 10px 0; font-size: 14px; }
.banner strong { color: var(--open); }
.verdict { border-width: 1px 1px 1px 7px; }
.verdict h2 { font-size: 20px; }
.verdict ul { margin: 8px 0 0; padding: 0; list-style: none; }
.verdict li { padding: 8px 0; border-top: 1px solid var(--line); }
.verdict li ul { margin: 2px 0 0 18px; list-style: disc; color: var(--soft); font-size: 13.5px; }
.verdict li li { border: 0; padding: 0; }
.pass { border-color: var(--good); background: var(--good-bg); }
.fail { border-color: var(--bad); background: var(--bad-bg); }
.inconclusive { border-color: var(--open); background: var(--open-bg); }
.word { display: inline-block; font-weight: 650; font-size: 12.5px; white-space: nowrap; }
.word.pass, .word.holds, .word.better { color: var(--good); }
.word.fail, .word.fails, .word.worse { color: var(--bad); }
.word.inconclusive { color: var(--open); }
.word.pass, .word.fail, .word.inconclusive { background: none; }
.scroll { overflow-x: auto; margin: 8px 0; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 12px 6px 0; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); font-size: 12.5px; vertical-align: bottom; max-width: 120px; }
th.l, td.l { text-align: left; }
td small { display: block; color: var(--soft); font-size: 11.5px; white-space: nowrap; }
td { white-space: nowrap; }
td.wrap { white-space: normal; overflow-wrap: anywhere; min-width: 220px; max-width: 600px; }
tr.teacher td { background: color-mix(in srgb, var(--teacher) 7%, transparent); }
tr.ships td { background: color-mix(in srgb, var(--good) 8%, transparent); font-weight: 600; }
tr.ships small { font-weight: 400; }
tbody tr:last-child td { border-bottom: 0; }
svg { max-width: 100%; height: auto; display: block; font-size: 12px; fill: var(--ink);
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
figure { margin: 12px 0 0; }
figcaption { font-size: 13.5px; font-weight: 600; margin-bottom: 6px; }
.row { display: flex; flex-wrap: wrap; gap: 12px 36px; align-items: flex-start; }
.grid { stroke: var(--grid); } .tick { fill: var(--soft); } .axis { fill: var(--ink); }
.label { fill: var(--ink); font-weight: 600; paint-order: stroke; stroke: var(--card); stroke-width: 3px; }
 .leader { stroke: var(--soft); stroke-width: 0.7; }
.front { fill: none; stroke: var(--soft); stroke-dasharray: 5 4; }
.s-onnx { --c: var(--onnx); } .s-openvino { --c: var(--openvino); } .s-tflite { --c: var(--tflite); }
.t-onnx { fill: var(--onnx); } .t-openvino { fill: var(--openvino); } .t-tflite { fill: var(--tflite); }
.accent { --c: var(--accent); } .neutral, .same { --c: var(--soft); }
.better { --c: var(--good); } .worse { --c: var(--bad); }
.r-teacher { --c: var(--teacher); } .r-student { --c: var(--student); }
.r-control, .r-qat, .r-surgery { --c: var(--control); }
.dot { fill: var(--c); stroke: var(--c); fill-opacity: 0.55; stroke-width: 1.5; }
.dot.teacher { fill: var(--c); fill-opacity: 0.08; stroke-width: 2; }
.whisker { stroke: var(--c); stroke-width: 1.6; opacity: 0.75; }
.bar { fill: var(--c); opacity: 0.55; } .median { stroke: var(--ink); stroke-width: 2; }
.change { stroke: var(--c); stroke-width: 2.5; } text.better, text.worse { fill: var(--c); }
.diagonal { stroke: var(--soft); stroke-dasharray: 4 4; } .gap { stroke: var(--soft); stroke-width: 1; opacity: 0.6; }
.cell.empty { fill: var(--empty); } .cell.right { fill: var(--right); } .cell.wrong { fill: var(--wrong); }
.count { font-size: 11.5px; } .count.on { fill: #ffffff; } .count.off { fill: var(--ink); }
.curve { fill: none; stroke: var(--c); stroke-width: 2; }
.d1 { stroke-dasharray: 7 4; } .d2 { stroke-dasharray: 2 3; } .d3 { stroke-dasharray: 10 3 2 3; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); gap: 12px; }
.shot { border: 1px solid var(--line); border-radius: 8px; padding: 8px; font-size: 12.5px; overflow-wrap: anywhere; }
.shot img { width: 128px; height: auto; display: block; margin: 0 auto 6px; border-radius: 4px; }
.shot .gone { height: 128px; display: grid; place-items: center; color: var(--soft); }
.texts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 560px), 1fr)); gap: 12px; }
.texts .shot { font-size: 13.5px; padding: 10px 14px; } .texts .word { white-space: normal; }
.line { display: flex; gap: 10px; margin: 0 0 6px; align-items: baseline; }
.who { flex: 0 0 84px; color: var(--soft); font-size: 12.5px; }
.said { min-width: 0; line-height: 1.85; unicode-bidi: isolate; overflow-wrap: anywhere; white-space: pre-wrap; }
.entity { border-radius: 4px; padding: 1px 4px; background: color-mix(in srgb, var(--c) 17%, transparent);
  box-shadow: inset 0 -2px var(--c); }
.entity small { color: var(--soft); font-size: 10.5px; font-weight: 650; margin-left: 4px; }
.e0 { --c: #2563eb; } .e1 { --c: #d97706; } .e2 { --c: #0f9d76; } .e3 { --c: #c026a3; }
.e4 { --c: #7c5cf0; } .e5 { --c: #dc4a4a; } .e6 { --c: #5b8a1f; } .e7 { --c: #64748b; }
.legend .span { margin-right: 14px; }
.m-truth { background: color-mix(in srgb, var(--good) 22%, transparent); }
.m-teacher { border-bottom: 2px solid var(--teacher); } .m-student { border-top: 2px solid var(--student); }
pre { background: var(--page); border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px; overflow-x: auto;
  font: 12.5px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
code { font: 12.5px ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 2px 16px;
  font-size: 13.5px; margin: 6px 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; } dd > dl { margin: 0; }
details { margin: 8px 0; } summary { cursor: pointer; font-size: 14px; font-weight: 600; }
@media print { body { background: none; } section { break-inside: avoid; } }
"""
