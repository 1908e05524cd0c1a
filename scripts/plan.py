"""Predict what the config needs of this machine: memory, graphics memory, disk and time of each phase.

Nothing is trained and no weight is downloaded: weights are counted on shapes alone, and one training step is replayed
on tensors without memory. Of a base that is not here, config.json is fetched from the Hub. Ends with 7 when a phase
cannot fit, and names the setting to change with the value that fits.
"""

import gc

from forge import command, config
from forge.planning.batch import Batch


def main() -> None:
    arguments = command.parser(__doc__).parse_args()
    gc.disable()  # importing torch, transformers and peft takes 6.2 s instead of 8.5 without it; the process ends soon
    command.guard(lambda: show(config.load(arguments.config)), debug=arguments.debug)


def show(configuration: config.Config) -> None:
    from forge.planning import estimate

    plan = estimate.plan(configuration)
    print(f"{configuration.layout.name} ({configuration.path})")
    for line in [*head(plan), "", *table(plan)]:
        print(line)
    if not plan.failures:
        print("\nfits")
        return
    print(flush=True)
    *others, last = plan.failures
    for failure in others:
        command.fail(failure, debug=False)
    raise last


def head(plan) -> list[str]:
    """What was counted, how training would be done, and what its memory consists of."""
    chosen, need = plan.choices, next(row.need for row in plan.rows if row.phase == "train")
    kind = "4-bit" if chosen.four_bit else chosen.dtype
    saving = "on" if chosen.gradient_checkpointing else "off"
    parts = ", ".join(f"{name} {gb(size)}" for name, size in need.parts.items())
    return [
        f"base {plan.base.name}: {plan.weights.total:,} weights, {plan.weights.packed:,} of them in layers that 4 bits "
        f"hold; adapter {plan.adapter:,}",
        f"training: base in {kind}{', held unpacked' if chosen.unpack else ''}, {chosen.dtype} on {chosen.device}, "
        f"optimizer {chosen.optimizer}, gradient checkpointing {saving}; {'; '.join(map(told, plan.batches))}",
        f"its {'graphics memory' if need.card else 'memory'}: {parts}",
    ]


def told(batch: Batch) -> str:
    rows = ", ".join(map(str, batch.lengths[:4])) + (", ..." if len(batch.lengths) > 4 else "")
    return f"{batch.stage}: {len(batch.lengths)} rows at once of up to {rows} tokens"


def table(plan) -> list[str]:
    there = plan.machine
    card = "-" if there.card is None else gb(there.card)
    lines = [("phase", "memory", "GPU", "disk", "time")]
    for row in plan.rows:
        graphics = gb(row.need.card) if row.need.card else "-"
        lines.append((row.phase, gb(row.need.memory), graphics, size(row.disk), duration(row)))
    lines.append((f"there{f' ({there.capped})' if there.capped else ''}", gb(there.memory), card, gb(there.disk), ""))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return [
        "  ".join(
            cell.ljust(width) if not place else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]


def duration(row) -> str:
    if row.seconds is None:
        return "-"
    seconds = row.seconds
    text = (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
    return f"took {text}" if row.recorded else f"about {text}"


def size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 5e7 else f"{number / 1e6:.0f} MB" if number else "-"


def gb(number: float) -> str:
    return f"{number / 1e9:.1f} GB"


if __name__ == "__main__":
    main()
