"""Tables of how the mode `auto` chose the corrections of the default schedule."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engines.chain.schedule import JudgedCorrection
from ptqd_export.report.content import Content
from ptqd_export.report.tables import NOTHING, Cell, Table, number, words


def chosen_table(content: Content) -> Table:
    """Make a table of each chain's chosen correction, and how much nearer it ends than no correction and the paper's."""
    columns = ("chain", "correction", "end error", "nearer than uncorrected", "nearer than the paper's", "samples")
    return Table.of("Corrections chosen by where held-out chains end", columns, [_chosen_row(chain) for chain in _chains(content)])


def _chosen_row(chain: Sequence[JudgedCorrection]) -> list[Cell]:
    (chosen,) = (each for each in chain if each.chosen)
    none, paper = (_first(chain, mode) for mode in ("none", "ptqd"))
    return [
        words(chosen.chain or "the schedule's own"),
        words(_label(chosen)),
        number(chosen.error_db, ".2f", " dB"),
        _nearer(none),
        _nearer(paper),
        number(chosen.samples, "d"),
    ]


def proposal_table(content: Content) -> Table:
    """Make a table of every proposal for every chain."""
    columns = ("chain", "correction", "end error", "behind the chosen", "standard error", "samples")
    rows = [
        [
            words(each.chain or "the schedule's own"),
            words(_label(each)),
            number(each.error_db, ".2f", " dB"),
            number(each.behind_db, ".2f", " dB"),
            number(each.standard_error_db, ".2f", " dB"),
            number(each.samples, "d"),
        ]
        for each in content.schedule.judged
    ]
    return Table.of("Every proposal", columns, rows)


def _chains(content: Content) -> Iterable[Sequence[JudgedCorrection]]:
    judged = content.schedule.judged
    return ([each for each in judged if each.chain == name] for name in dict.fromkeys(each.chain for each in judged))


def _first(chain: Sequence[JudgedCorrection], mode: str) -> JudgedCorrection | None:
    """Return the proposal of a mode as it is published: `none` with the sampler's own noise, `ptqd` with its variance schedule."""
    of_mode = [each for each in chain if each.correction.mode == mode]
    published = "none" if mode == "none" else "schedule"
    return next((each for each in of_mode if each.correction.variance == published), next(iter(of_mode), None))


def _nearer(other: JudgedCorrection | None) -> Cell:
    if other is None:
        return NOTHING
    return Cell(f"{other.behind_db:.2f} ± {other.standard_error_db:.2f} dB", float(other.behind_db))


def _label(each: JudgedCorrection) -> str:
    return "each precision's own" if each.correction.mode == "auto" else each.correction.label
