// Checks what `virtbench run` left: every file of the run directory, its columns, its hashes, that the cells are there, and that
// each is faithful or marked with its hole.
import { createHash } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

const columns = {
  'samples.csv':
    'round,strategy,workload,traps_per_unit,units,traps,elapsed_ns,guest_tsc,steal_ns,involuntary_switches,outlier,status,note',
  'exits.csv':
    'round,strategy,workload,traps_per_unit,reason,count,switch_out_ns,dispatch_ns,emulate_ns,switch_in_ns',
  'kernel-statistics.csv': 'round,strategy,workload,traps_per_unit,statistic,count',
  'translation-statistics.csv':
    'round,strategy,workload,traps_per_unit,scope,blocks,guest_instructions,guest_bytes,host_bytes,translate_ticks,translate_ns,links,lookup_misses,lookup_hits,invalidations,flushes',
  'io-statistics.csv':
    'round,strategy,workload,traps_per_unit,waiting_ns,requests,completions,errors,bytes_read,bytes_written,flushes,interrupts,latency_ns,latency_max_ns',
  'fits.csv':
    't0_ns,t0_ci_low_ns,t0_ci_high_ns,dt_ns,dt_ci_low_ns,dt_ci_high_ns,theil_sen_dt_ns,r2,lack_of_fit_p,verdict,points',
};
const fewestDensities = 5;
const run = process.argv[2];
const failures = [];
const expect = (condition, message) => condition || failures.push(message);

const text = (name) => (existsSync(join(run, name)) ? readFileSync(join(run, name), 'utf8') : '');
for (const name of ['environment.json', 'report.html', 'report.md', ...Object.keys(columns)]) {
  expect(text(name).length > 0, `${name} is missing or empty`);
}
for (const [name, header] of Object.entries(columns)) {
  const expected = name === 'fits.csv' ? `strategy,workload,${header}` : header;
  expect(text(name).split('\r\n')[0] === expected, `${name} has other columns than docs/file-formats.md says`);
}

const manifest = JSON.parse(text('manifest.json') || '{}');
for (const [name, hash] of Object.entries(manifest.files ?? {})) {
  const actual = createHash('sha256').update(readFileSync(join(run, name))).digest('hex');
  expect(actual === hash, `${name} is not the file that the manifest names`);
}
for (const name of [...Object.keys(columns), 'environment.json', 'report.html', 'report.md']) {
  expect(manifest.files?.[name], `the manifest has no hash of ${name}`);
}
const specifications = Object.keys(manifest.files ?? {}).filter((name) => /^figures\/.*\.vl\.json$/.test(name));
expect(specifications.length >= 4, `only ${specifications.length} figures`);
for (const name of specifications) {
  const picture = name.replace(/\.vl\.json$/, '.svg');
  expect(text(picture).startsWith('<svg'), `${picture} was not rendered`);
}

// Neither ids nor counts need quoting, so the first fields split at commas.
const densities = new Map();
const holes = new Map();
for (const line of text('samples.csv').split('\r\n').slice(1).filter(Boolean)) {
  const [, strategy, workload, k] = line.split(',');
  const cells = `${strategy}/${workload}`;
  densities.set(cells, (densities.get(cells) ?? new Set()).add(k));
  const row = line.match(/,(ok|trap-mismatch|checksum-mismatch|failed),"?(.*)$/);
  const note = row?.[2].match(/^not faithful: ([^;"]+)(; the guest ended)?/);
  expect(row?.[1] === 'ok' || (row?.[1] === 'failed' && note?.[2]), `sample not ok: ${line}`);
  expect(!note || k !== '0', `the control holds no sensitive instruction, but is marked: ${line}`);
  if (note) holes.set(cells, note[1]);
}
// A strategy whose exits the host's kernel counts has its count for every sample.
const counted = new Map();
for (const line of text('kernel-statistics.csv').split('\r\n').slice(1).filter(Boolean)) {
  const [round, strategy, workload, k, statistic, count] = line.split(',');
  expect(/^[0-9]+$/.test(count), `no count: ${line}`);
  const samples = counted.get(strategy) ?? new Set();
  counted.set(strategy, statistic === 'exits' ? samples.add(`${round},${strategy},${workload},${k}`) : samples);
}
for (const line of text('samples.csv').split('\r\n').slice(1).filter(Boolean)) {
  const [round, strategy, workload, k] = line.split(',');
  const ended = /,failed,"?not faithful: /.test(line); // no region, nothing counted
  const has = ended || (counted.get(strategy)?.has(`${round},${strategy},${workload},${k}`) ?? true);
  expect(has, `kernel-statistics.csv has no exits of the sample ${round}, ${strategy}/${workload}/${k}`);
}
// A strategy that translates says for every sample what it translated, and has translated something by the end of it.
const translated = new Map();
for (const line of text('translation-statistics.csv').split('\r\n').slice(1).filter(Boolean)) {
  const [round, strategy, workload, k, scope, blocks, instructions] = line.split(',');
  expect(['region', 'run'].includes(scope), `no scope of translation: ${line}`);
  expect(scope !== 'run' || (Number(blocks) > 0 && Number(instructions) > 0), `nothing was translated: ${line}`);
  translated.set(strategy, (translated.get(strategy) ?? new Set()).add(`${round},${strategy},${workload},${k},${scope}`));
}
for (const line of text('samples.csv').split('\r\n').slice(1).filter(Boolean)) {
  const [round, strategy, workload, k] = line.split(',');
  const ended = /,failed,"?not faithful: /.test(line);
  const has = (scope) => translated.get(strategy)?.has(`${round},${strategy},${workload},${k},${scope}`) ?? true;
  expect(ended || (has('region') && has('run')), `translation-statistics.csv lacks the sample ${round}, ${strategy}/${workload}/${k}`);
}
// Every guest that has a disk uses it as often as its samples say, and without an error.
const io = new Map();
for (const line of text('io-statistics.csv').split('\r\n').slice(1).filter(Boolean)) {
  const [round, strategy, workload, k, waiting, requests, completions, errors] = line.split(',');
  io.set(`${round},${strategy},${workload},${k}`, { waiting: Number(waiting), requests: Number(requests), completions, errors });
}
for (const line of text('samples.csv').split('\r\n').slice(1).filter(Boolean)) {
  const [round, strategy, workload, k, units] = line.split(',');
  if (!/^disk-/.test(workload) || k === '0' || /,failed,/.test(line)) continue;
  const account = io.get(`${round},${strategy},${workload},${k}`);
  const sample = `${round}, ${strategy}/${workload}/${k}`;
  expect(account?.requests === k * units, `io-statistics.csv has ${account?.requests} requests of the sample ${sample}, not ${k * units}`);
  expect(account?.errors === '0' && account?.completions === String(account?.requests), `requests of ${sample} failed`);
  expect(workload !== 'disk-io' || account?.waiting > 0, `${sample} has not waited for its disk`);
}
// Kinds of code, which do not depend on k, are measured at its least value only.
const expectedDensities = (workload) => (/^(compute-|call-return$|indirect-branch)/.test(workload) ? 1 : fewestDensities);
const skipped = new Map((manifest.run?.skipped ?? []).map((s) => [s.workload ? `${s.strategy}/${s.workload}` : s.strategy, s]));
for (const { id: strategy } of manifest.run?.strategies ?? []) {
  for (const { id: workload } of manifest.run?.workloads ?? []) {
    const cells = `${strategy}/${workload}`;
    const reason = skipped.get(cells) ?? skipped.get(strategy);
    expect(
      reason ? reason.reason.length > 0 : (densities.get(cells)?.size ?? 0) >= expectedDensities(workload),
      `${cells} has ${densities.get(cells)?.size ?? 0} densities and is not listed as skipped`,
    );
  }
}

// Ring deprivileging cannot see POPF, hardware can: the first is marked in every run, the second in none.
for (const strategy of ['trap-and-emulate', 'simulated-trap-and-emulate']) {
  const ran = densities.has(`${strategy}/popf`);
  expect(!ran || holes.get(`${strategy}/popf`) === 'popf', `${strategy}/popf is not marked as not faithful`);
}
expect(!holes.has('hardware/popf'), 'hardware/popf is marked as not faithful');
// A translator sees every instruction.
for (const cells of holes.keys()) {
  expect(!cells.split('/')[0].endsWith('binary-translation'), `${cells} is translated, but marked as not faithful`);
}
for (const { id } of manifest.run?.strategies ?? []) {
  const ran = [...densities.keys()].some((cells) => cells.startsWith(`${id}/`));
  expect(!ran || !id.endsWith('binary-translation') || translated.has(id), `translation-statistics.csv has nothing of ${id}`);
}
for (const [cells, names] of holes) {
  const [strategy, workload] = cells.split('/');
  const fit = text('fits.csv').split('\r\n').find((line) => line.startsWith(`${strategy},${workload},`)) ?? '';
  expect(fit.includes(`not faithful: ${names.split(', ')[0]}`), `the verdict on ${cells} does not say that it is not faithful`);
  expect(fit.split(',')[5] === '', `${cells} is not faithful, but has a cost per trap`);
  const known = (manifest.run?.strategies ?? []).find((s) => s.id === strategy)?.holes?.map((hole) => hole.instruction) ?? [];
  expect(names.split(', ').every((name) => known.includes(name)), `the manifest does not know the holes of ${cells}: ${names}`);
  expect(text('report.md').includes(`not faithful: ${names}`), `the report does not show that ${cells} is not faithful`);
}

if (failures.length > 0) {
  console.error(failures.slice(0, 20).join('\n'));
  process.exit(1);
}
console.log(`${run}: ${densities.size} strategy-workload pairs, ${holes.size} of them marked as not faithful, ${specifications.length} figures, all hashes right`);
