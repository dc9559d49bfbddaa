"""Sentences about what limits a benchmark's numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stages.bench.census import integer_share, summary
from stages.bench.document import VariantRow
from stages.bench.method import Record
from stages.bench.recommend import MIN_COSINE
from stages.bench.rows import DRIFT_BEYOND, Host


def sentences(measured: Sequence[VariantRow], records: Mapping[str, Record], host: Host, cores: int) -> list[str]:
    """About the host first, then about single rows."""
    said = list(dict.fromkeys(note for record in records.values() for load in record.loads for note in load["notes"]))
    said += _about_host(host)
    for row in measured:
        if row.threads > cores and row.scenario != "throughput":
            said.append(f"{row.id}: {row.threads} threads on {cores} usable CPUs")
        said += _doubts(row)
    return said


def _about_host(host: Host) -> list[str]:
    said = []
    if host.interference is None:
        said.append("this system does not say how long threads waited for a CPU: absolute FPS are not given")
    elif host.interference > 0.02:
        said.append(
            f"the host was busy: {100 * host.interference:.0f} % of the time a thread waited for a CPU; "
            "trust the ratios, not the absolute times"
        )
    if host.status == "throttled":
        said.append("the processor was slowed down for heat while measuring: cool it, or use sustain to see how far")
    if host.drift is not None and abs(host.drift) > DRIFT_BEYOND:
        said.append(f"the baseline's CPU time drifted by {100 * host.drift:+.0f} % from first to last round")
    return said


def _doubts(row: VariantRow) -> list[str]:
    """What a working row does differently from what its name promises."""
    said = []
    integer, heavy = integer_share(row.executed)
    if row.precision == "int8" and row.executed and integer < heavy:
        said.append(
            f"{row.id}: only {integer} of {heavy} heavy operators run on 8-bit integers: {summary(row.executed)}"
        )
    if row.batch > 1:
        said.append(f"{row.id}: the file declares batches of {row.batch}: latencies are per batch, FPS per frame")
    if row.difference is not None and (row.difference.cosine is None or row.difference.cosine < MIN_COSINE):
        how = "cannot be compared" if row.difference.cosine is None else f"cosine {row.difference.cosine:.3f}"
        said.append(f"{row.id}: outputs differ from {row.difference.baseline}'s ({how})")
    return said
