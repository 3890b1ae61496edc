"""Search service: 8 clients that search at the same time, while the embeddings are replaced every 20 seconds.

The service (clip_ft_serve), its clients and the writer of the embeddings share two cores. Each client sends its next
request when it has the answer to the last one. Every text is new, so that no embedding of a query is reused. The memory
is the proportional set size (PSS) of all processes of the service: memory that they share is counted once.

    .venv/bin/python benchmarks/service.py --root DIR --minutes 30     # a project with embeddings; it is not changed

The records are written to benchmarks/results/service.json.
"""
import argparse
import asyncio
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from datetime import date
from pathlib import Path
from urllib.parse import quote, urlencode

import numpy as np
import psutil
from common import PACKAGES, RESULTS, cpu_name, print_record, rounded, usable_cores, versions

from clip_ft.core import Paths, atomic_write
from clip_ft.embeddings_file import load_embeddings

KINDS = {'text': 14, 'filtered': 2, 'second page': 1, 'like': 1, 'filters': 1, 'thumbnail': 1}  # shares of the requests


# ---- project and writer

def copy_project(root: Path, folder: Path) -> Paths:
    "A project that shares everything with another one, but its embeddings."
    source, paths = Paths(root), Paths(folder/'shop')
    for path in (source.extracted, source.split, source.best_model):
        target = paths.root/path.relative_to(source.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path.resolve())
    shutil.copy(source.embeddings, paths.embeddings)
    return paths


def write_variants(paths: Paths, folder: Path) -> list[Path]:
    "Two embeddings files: all products, and all but the last hundred."
    variants = [folder/'all.npz', folder/'fewer.npz']
    shutil.copy(paths.embeddings, variants[0])
    with np.load(paths.embeddings) as file:
        arrays = dict(file)
    count = len(arrays['image_names'])-100
    for name in {'embeddings', 'image_names', 'digests'} & arrays.keys():
        arrays[name] = arrays[name][:count]
    table = {column: values[:count] for column, values in json.loads(arrays['products'].tobytes()).items()}
    np.savez(variants[1], **arrays | dict(products=np.frombuffer(json.dumps(table).encode(), np.uint8)))
    return variants


def replace_embeddings(paths: Paths, variant: Path):
    "Write an embeddings file as clip_ft_embed does: to another name, which is then renamed."
    with atomic_write(paths.embeddings, durable=True) as temporary:
        shutil.copyfile(variant, temporary)


# ---- requests

class Requests:
    "Random requests; each text is new."

    def __init__(self, data: dict, seed: int):
        self.random = random.Random(seed)
        products = data['dataframe']
        self.words = sorted({word for name in products['display name'].head(5000) for word in name.split()})
        self.images = list(map(str, data['image_names'][:-100]))
        self.categories = products['category'].value_counts().index[:30].tolist()

    def __iter__(self):
        return self

    def __next__(self) -> tuple[str, str]:
        "Kind and address."
        kind = self.random.choices(list(KINDS), list(KINDS.values()))[0]
        image = quote(self.random.choice(self.images))
        if kind == 'like':
            return kind, f'/like/{image}?top_k=24'
        if kind == 'thumbnail':
            return kind, f'/images/{image}?size=224'
        category = f'category={self.random.choice(self.categories)}'
        if kind == 'filters':
            return kind, '/filters?'+urlencode(dict(where=category))
        text = ' '.join(self.random.sample(self.words, self.random.choice((1, 2, 2, 3, 3, 4, 5))))
        options = dict(query=text, top_k=24)
        if kind == 'filtered':
            options['where'] = category
        if kind == 'second page':
            options['offset'] = 24
        return kind, '/search?'+urlencode(options)


async def request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: str) -> tuple[int, bytes]:
    "One request over a connection that stays open."
    writer.write(f'GET {address} HTTP/1.1\r\nHost: localhost\r\n\r\n'.encode())
    head = await reader.readuntil(b'\r\n\r\n')
    length = int(re.search(rb'content-length: (\d+)', head)[1])
    return int(head[9:12]), await reader.readexactly(length)


async def client(port: int, requests: Requests, end: float, records: list, errors: Counter):
    "Send requests one after another."
    reader, writer = await asyncio.open_connection('127.0.0.1', port)
    while time.time() < end:
        kind, address = next(requests)
        start = time.perf_counter()
        try:
            status, body = await asyncio.wait_for(request(reader, writer, address), 60)
            seconds = time.perf_counter()-start
            if status != 200 or (b'"products"' not in body and not body.startswith(b'\xff\xd8')):
                errors[f'{kind}: {status} {body[:100]!r}'] += 1
        except (OSError, EOFError, TimeoutError) as error:
            seconds = time.perf_counter()-start
            errors[f'{kind}: {type(error).__name__}'] += 1
            reader, writer = await asyncio.open_connection('127.0.0.1', port)
        records.append((time.time(), kind, seconds))
    writer.close()


# ---- memory

def memory(server: psutil.Process) -> dict[str, float]:
    "Memory of the service in MB: PSS of all processes, and RSS of the server."
    processes = [server, *server.children(recursive=True)]
    pss = 0
    for process in processes:
        try:
            pss += process.memory_full_info().pss
        except psutil.Error:
            continue
    return dict(pss_mb=pss/1e6, server_rss_mb=server.memory_info().rss/1e6, processes=len(processes))


def slope(samples: list[dict], name: str) -> float:
    "MB per hour, from a line through the samples after the first fifth of the time."
    times = np.array([sample['seconds'] for sample in samples])
    values = np.array([sample[name] for sample in samples])
    late = times > times[-1]/5
    return float(np.polyfit(times[late]/3600, values[late], 1)[0]) if late.sum() > 2 else float('nan')


# ---- the benchmark

def start_service(root: Path, log: Path) -> tuple[subprocess.Popen, int]:
    "Start clip_ft_serve; returns the process and its port."
    import socket
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    code = 'from clip_ft.commands import serve_main; serve_main()'
    command = [sys.executable, '-W', 'ignore', '-c', code, '--root', str(root), '--port', str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log.open('w'), text=True)
    line = server.stdout.readline()
    if 'are served' not in line:
        sys.exit(f'The service did not start:\n{log.read_text()[-3000:]}')
    print(line, end='', flush=True)
    return server, port


async def watch(server: psutil.Process, start: float, end: float, samples: list):
    "Sample the memory every 10 seconds."
    while time.time() < end:
        samples.append(dict(seconds=time.time()-start, **await asyncio.to_thread(memory, server)))
        await asyncio.sleep(10)


async def write(paths: Paths, variants: list[Path], every: float, end: float) -> int:
    "Replace the embeddings until the end; returns how often."
    number = 0
    while time.time()+every < end:
        await asyncio.sleep(every)
        number += 1
        await asyncio.to_thread(replace_embeddings, paths, variants[number % 2])
    return number


async def measure(
    args: argparse.Namespace, server: psutil.Process, port: int, paths: Paths, variants: list[Path]
) -> dict:
    "Run clients, writer and sampling of the memory at the same time."
    data, errors, samples = load_embeddings(variants[0]), Counter(), []
    requests = [Requests(data, seed) for seed in range(args.clients)]
    await asyncio.gather(*(client(port, each, time.time()+5, [], Counter()) for each in requests))  # not counted
    records, start = [], time.time()
    end = start+60*args.minutes
    clients = [client(port, each, end, records, errors) for each in requests]
    writer = write(paths, variants, args.every, end) if args.every else asyncio.sleep(0, 0)
    written, *_ = await asyncio.gather(writer, watch(server, start, end, samples), *clients)
    reader, connection = await asyncio.open_connection('127.0.0.1', port)
    health = json.loads((await request(reader, connection, '/health'))[1])
    connection.close()
    return dict(products=len(data['dataframe']), records=records, start=start, errors=errors, samples=samples,
                written=written, generations=health['generation'])


def summary(seconds: list[float]) -> dict:
    "Percentiles in milliseconds."
    p50, p95, p99 = 1000*np.percentile(seconds, [50, 95, 99])
    return dict(requests=len(seconds), p50_ms=p50, p95_ms=p95, p99_ms=p99, max_ms=1000*max(seconds))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--root', type=Path, required=True, help='project with embeddings; it is not changed')
    parser.add_argument('--minutes', type=float, default=1., help='time to measure')
    parser.add_argument('--clients', type=int, default=8)
    parser.add_argument('--every', type=float, default=20., help='seconds between two embeddings; 0: never')
    parser.add_argument('--cores', type=int, default=2, help='cores that service, clients and writer share')
    parser.add_argument('--out', type=Path, default=RESULTS/'service.json')
    args = parser.parse_args()
    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:args.cores])
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        paths = copy_project(args.root, Path(folder))
        variants = write_variants(paths, Path(folder))
        server, port = start_service(paths.root, Path(folder)/'log')
        try:
            found = asyncio.run(measure(args, psutil.Process(server.pid), port, paths, variants))
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(60)
        log = (Path(folder)/'log').read_text()
    report(args, found, load, log)


def report(args: argparse.Namespace, found: dict, load: float, log: str):
    "Print and write the results."
    records, samples = found['records'], found['samples']
    parameters = sum(np.prod(shape) for shape in parameter_shapes(args.root))
    about = dict(name='service', date=date.today().isoformat(),
                 versions=versions([*PACKAGES, 'fastapi', 'uvicorn']),
                 machine=dict(cpu=cpu_name(), cores=usable_cores(), load_before=load),
                 products=found['products'],
                 model_parameters=int(parameters), clients=args.clients, minutes=args.minutes,
                 seconds_between=args.every)
    by_kind, by_minute = defaultdict(list), defaultdict(list)
    for at, kind, seconds in records:
        by_kind[kind].append(seconds)
        by_minute[int((at-found['start'])/60)].append(seconds)
    pss = [sample['pss_mb'] for sample in samples]
    used = dict(pss_mb_median=np.median(pss), pss_mb_max=max(pss), pss_mb_per_hour=slope(samples, 'pss_mb'),
                server_rss_mb_per_hour=slope(samples, 'server_rss_mb'))
    result = dict(all=summary([seconds for *_, seconds in records]),
                  requests_per_second=len(records)/(60*args.minutes),
                  kinds={kind: summary(seconds) for kind, seconds in by_kind.items()},
                  errors=sum(found['errors'].values()), error_kinds=dict(found['errors']),
                  embeddings_written=found['written'], generations_served=found['generations'],
                  errors_in_log=log.count(' ERROR '), memory=used)
    minutes = [summary(seconds) for _, seconds in sorted(by_minute.items())]
    print_record(**about)
    print_record(**result)
    if log.strip():
        print('log:', log[-1500:])
    whole = about | result | dict(per_minute=minutes, memory_samples=samples)
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(rounded(whole), indent=1)+'\n')
    print(f'saved {args.out}')


def parameter_shapes(root: Path):
    "Shapes of the weights of the model of a project."
    from safetensors import safe_open
    with safe_open(Paths(root).best_model/'model.safetensors', 'np') as file:
        return [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118


if __name__ == '__main__':
    main()
