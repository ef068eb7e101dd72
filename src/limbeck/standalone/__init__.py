"""The verbs that stand alone: prove any policy against any other, export any policy, check any artefact."""

from limbeck.standalone.duels import Asked
from limbeck.standalone.exports import export
from limbeck.standalone.folders import check, report
from limbeck.standalone.proofs import prove

__all__ = ["Asked", "check", "export", "prove", "report"]
