"""Draw the records of bench_network and bench_kernels as bars: an SVG, beside the numbers.

    python -m bench.charts bench/results/network_cpu.jsonl -o docs/network_cpu.svg
    python -m bench.charts bench/results/kernels_h200.jsonl -o docs/kernels_h200.svg [--dtype bf16]

Of the network, clips a second of every provider at every batch size; of kernels, how near each provider comes to the
floor. Providers keep their colours in a file.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

# Colours that people who see no red or green tell apart (Okabe and Ito).
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999", "#f0e442", "#444444")
WIDTH, BAR, GAP, TOP, FONT = 960, 14, 12, 64, 11
LETTER = 6.6  # width of a letter at that size, about

Groups = dict[str, dict[str, float]]


def main(argv: Sequence[str] | None = None) -> None:
    """Read, draw, write."""
    parser = argparse.ArgumentParser(
        prog="bench.charts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("records", type=Path, help="a file of bench/results")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--dtype", default="bf16", help="of kernels")
    args = parser.parse_args(argv)
    records = [json.loads(line) for line in args.records.read_text().splitlines()]
    title, groups = network_bars(records) if records[0]["op"] == "network" else kernel_bars(records, args.dtype)
    args.out.write_text(svg(title, about(records[0]), groups), encoding="utf-8")
    print(args.out)


def network_bars(records: Sequence[Mapping[str, Any]]) -> tuple[str, Groups]:
    """Return a title, and clips a second by batch size and provider."""
    groups: Groups = {}
    for record in records:
        groups.setdefault(f"batch {record['shape'][0]}", {})[record["provider"]] = record["clips_per_s"]
    return "The network alone: clips a second (more is better)", groups


def kernel_bars(records: Sequence[Mapping[str, Any]], dtype: str) -> tuple[str, Groups]:
    """Return a title, and per cent of the floor by kernel and provider."""
    groups: Groups = {}
    for record in records:
        if record["dtype"] == dtype and "percent_of_floor" in record:
            times = f"{record['times']} x " if record["times"] > 1 else ""
            name = f"{times}{record['op']} {record['key']} ({record['limit']})"
            groups.setdefault(name, {})[record["provider"]] = record["percent_of_floor"]
    return f"Kernels, {dtype}: per cent of what bytes or FLOPs allow (more is better)", groups


def about(record: Mapping[str, Any]) -> str:
    """Return the circumstances of a record in one line."""
    versions = record.get("versions", {})
    parts = [
        record.get("device", ""),
        *(f"{name} {versions[name]}" for name in ("torch", "triton") if name in versions),
    ]
    parts += [f"batch {record['batch_size']}"] if "batch_size" in record else []
    return ", ".join([*parts, f"commit {record.get('commit', 'unknown')}", record.get("date", "")])


def svg(title: str, subtitle: str, groups: Groups) -> str:
    """Return horizontal bars, a group below the other, as a picture. Zero is where the bars begin."""
    providers = list(dict.fromkeys(name for bars in groups.values() for name in bars))
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(providers)}
    largest = max((value for bars in groups.values() for value in bars.values()), default=0.0) or 1.0
    left = 16 + LETTER * max(map(len, [*providers, ""]))
    scale = (WIDTH - left - 90) / largest
    parts = [_text(16, 24, title, size=16, weight="bold"), _text(16, 44, subtitle, colour="#555555")]
    y = TOP
    for name, bars in groups.items():
        parts.append(_text(16, y + FONT, name, weight="bold"))
        y += BAR + 4
        for provider, value in bars.items():
            parts.append(_text(left - 8, y + FONT, provider, anchor="end"))
            box = f'x="{left:.1f}" y="{y}" width="{value * scale:.1f}" height="{BAR - 2}"'
            parts.append(
                f'<rect {box} fill="{colours[provider]}">'
                f"<title>{escape(f'{name}, {provider}: {value:g}')}</title></rect>"
            )
            parts.append(_text(left + value * scale + 4, y + FONT, f"{value:,.0f}" if value >= 100 else f"{value:.1f}"))
            y += BAR
        y += GAP
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}" role="img" '
        f'font-family="sans-serif">\n<title>{escape(title)}</title>\n'
        f'<rect class="paper" width="100%" height="100%" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


def _text(
    x: float,
    y: float,
    text: str,
    *,
    size: int = FONT,
    weight: str = "normal",
    anchor: str = "start",
    colour: str = "#111111",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" '
        f'fill="{colour}">{escape(text)}</text>'
    )


if __name__ == "__main__":
    main()
