"""The verbs that stand alone: prove any policy against any other, diagnose, record, export or check any."""

from limbeck.standalone.diagnosing import diagnose
from limbeck.standalone.duels import Asked
from limbeck.standalone.exports import export
from limbeck.standalone.folders import check, report
from limbeck.standalone.proofs import prove
from limbeck.standalone.recording import record

__all__ = ["Asked", "check", "diagnose", "export", "prove", "record", "report"]
