"""What a run looks like to people: one offline page, a terminal table, a side-by-side video."""

from limbeck.reporting.page import write
from limbeck.reporting.reading import load_result
from limbeck.reporting.table import print_table
from limbeck.reporting.video import VideoInfo, side_by_side
from limbeck.reporting.words import headline

__all__ = ["VideoInfo", "headline", "load_result", "print_table", "side_by_side", "write"]
