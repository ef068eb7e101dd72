"""The verbs that stand alone: prove any policy against any other, record, export or check any."""

from limbeck.standalone.duels import Asked
from limbeck.standalone.exports import export
from limbeck.standalone.folders import check, report
from limbeck.standalone.proofs import prove
from limbeck.standalone.recording import record

__all__ = ["Asked", "check", "export", "prove", "record", "report"]
