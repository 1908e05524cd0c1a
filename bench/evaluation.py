"""How far the verdict of `make evaluate` can be trusted: its intervals and its gate, where the truth is known.

Every line draws --draws samples from a population and asks the functions that the gate uses
(scripts/forge/evaluating/). Coverage: how often an interval of 90% holds the truth, and how often the truth lies under
it and over it (5% each would be exact). The gate: how often it passes a model that is exactly at the limit (a false
PASS), an equal one and a better one. The guards: how often none of eight blocks an equal model, beside the usual way,
in which each of the eight must be shown to hold. With --items the population of the margins is a measured one:
the pairs of evaluation/<name>/evaluate/items.jsonl, shifted to the truth that is tried.

The JSON line's ours is the rate of false PASS at the limit, the reference the 5% that it promises.
"""

import argparse
import json
from pathlib import Path

import harness
import numpy as np
from forge import command
from forge.evaluating import intervals, signals

MARGIN, TOLERANCE, PAIRS, ANSWERS = 0.05, 0.1, 208, 48  # the starter's
SPREAD = 0.18  # standard deviation of the starter's margins over pairs, nats a token
GUARDS = ((0.05, 48), (0.1, 48), (0.02, 48), (0.3, 144), (0.05, 144), (0.01, 144), (0.3, 72), (0.15, 48))


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--draws", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--items", type=Path, help="items.jsonl of an evaluation: its margins are the population")
    arguments = parser.parse_args()
    command.guard(lambda: simulate(arguments), arguments.debug)


def simulate(arguments: argparse.Namespace) -> None:
    random = np.random.default_rng(0)
    made = {**shapes(random), **measured(arguments.items)}
    covered = [*of_means(made, random, arguments.draws), *of_rates(random, arguments.draws)]
    covered += of_differences(random, arguments.draws)
    print("| interval | n | holds the truth | truth under it | truth over it |\n|---|---|---|---|---|")
    for row in covered:
        print(f"| {row['name']} | {row['n']} | {row['covered']:.1%} | {row['under']:.1%} | {row['over']:.1%} |")
    gated = [row for name, values in made.items() for row in of_gate(name, values, random, arguments.draws)]
    print("\n| gate: margins, truth | pairs | PASS | INCONCLUSIVE | FAIL |\n|---|---|---|---|---|")
    for row in gated:
        print(f"| {row['name']} | {row['n']} | {row['PASS']:.1%} | {row['INCONCLUSIVE']:.1%} | {row['FAIL']:.1%} |")
    guarded = of_guards(random, arguments.draws)
    print("\n| an equal model, eight signals | lets it pass |\n|---|---|")
    for name, share in guarded.items():
        print(f"| {name} | {share:.1%} |")
    false = max(row["PASS"] for row in gated if row["truth"] == -MARGIN)
    rows = [*covered, *gated, guarded]
    print(
        json.dumps(
            {"name": "evaluation", "ours": false, "reference": 0.05, "ratio": round(false / 0.05, 3), "rows": rows}
        )
    )


def shapes(random: np.random.Generator) -> dict[str, np.ndarray]:
    """Populations of margins with mean 0 and the starter's spread: even, skewed, with far outliers."""
    size = 100_000
    found = {
        "normal": random.normal(size=size),
        "skewed": random.gamma(2, size=size),
        "heavy tails": random.standard_t(4, size),
    }
    return {name: _centred(values) for name, values in found.items()}


def measured(path: Path | None) -> dict[str, np.ndarray]:
    if path is None:
        return {}
    values = [row["margin"] for row in harness.files.read_jsonl(path) if row["kind"] == "pair"]
    values = np.array(values, dtype=float)
    return {"measured": values - values.mean()}


def _centred(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / values.std() * SPREAD


def of_means(made: dict, random: np.random.Generator, draws: int) -> list[dict]:
    found = []
    for name, values in made.items():
        for n in (30, PAIRS):
            ends = [intervals.of_mean(list(random.choice(values, n))) for _ in range(draws)]
            found.append(_coverage(f"mean margin, {name}", n, ends, 0.0))
    return found


def of_rates(random: np.random.Generator, draws: int) -> list[dict]:
    return [
        _coverage(
            f"share {truth}", n, [intervals.of_rate(int(count), n) for count in random.binomial(n, truth, draws)], truth
        )
        for truth in (0.02, 0.1, 0.4)
        for n in (ANSWERS, PAIRS)
    ]


def of_differences(random: np.random.Generator, draws: int) -> list[dict]:
    """Pairs of answers: the second is the first with probability `same`, else drawn anew from its own share."""
    found = []
    for first, second in ((0.02, 0.02), (0.1, 0.2), (0.3, 0.3)):
        for same in (0.0, 0.5):
            truth = (1 - same) * (second - first)
            ends = [intervals.of_difference(*two_answers(random, first, second, same, ANSWERS)) for _ in range(draws)]
            found.append(
                _coverage(f"difference of shares {first} and {second}, {same:.0%} the same", ANSWERS, ends, truth)
            )
    return found


def two_answers(random: np.random.Generator, first: float, second: float, same: float, n: int) -> tuple[list, list]:
    before = random.random(n) < first
    after = np.where(random.random(n) < same, before, random.random(n) < second)
    return before.tolist(), after.tolist()


def _coverage(name: str, n: int, ends: list[tuple], truth: float) -> dict:
    under = sum(truth < low for low, _ in ends) / len(ends)
    over = sum(truth > high for _, high in ends) / len(ends)
    return {"name": name, "n": n, "covered": round(1 - under - over, 4), "under": under, "over": over}


def of_gate(name: str, values: np.ndarray, random: np.random.Generator, draws: int) -> list[dict]:
    found = []
    for label, truth in (("at the limit", -MARGIN), ("equal", 0.0), ("twice the limit", -2 * MARGIN), ("better", 0.1)):
        for n, minimum in ((20, 200), (PAIRS, 200)):
            told = [
                signals.gate("", list(random.choice(values, n) + truth), MARGIN, minimum).verdict for _ in range(draws)
            ]
            rates = {verdict: told.count(verdict) / draws for verdict in ("PASS", "INCONCLUSIVE", "FAIL")}
            found.append({"name": f"{name}, {label}", "truth": truth, "n": n, **rates})
    return found


def of_guards(random: np.random.Generator, draws: int) -> dict[str, float]:
    """An equal model whose answers differ from the base's by chance alone, half of them the same."""
    blocked = missed = 0
    for _ in range(draws):
        ends = [intervals.of_difference(*two_answers(random, share, share, 0.5, n)) for share, n in GUARDS]
        blocked += any(low > TOLERANCE for low, _ in ends)
        missed += any(high >= TOLERANCE for _, high in ends)
    return {
        "guards that block on shown harm": 1 - blocked / draws,
        "gates that must each be shown to hold": 1 - missed / draws,
    }


if __name__ == "__main__":
    main()
