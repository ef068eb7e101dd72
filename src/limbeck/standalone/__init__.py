"""The verbs that stand alone: prove any policy against any other, diagnose, record, export or check any."""

from limbeck.standalone.benching import bench
from limbeck.standalone.checking import check
from limbeck.standalone.diagnosing import diagnose
from limbeck.standalone.duels import Asked
from limbeck.standalone.exports import export
from limbeck.standalone.folders import report
from limbeck.standalone.playing import play
from limbeck.standalone.proofs import prove
from limbeck.standalone.recording import record
from limbeck.standalone.stressing import stress

__all__ = ["Asked", "bench", "check", "diagnose", "export", "play", "prove", "record", "report", "stress"]
