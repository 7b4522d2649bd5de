from __future__ import annotations

from benchmarks import alignbeam, engine, fidelity, inferaligner, judges, projections

for part in (projections, fidelity, judges, engine, alignbeam):
    part.main()
inferaligner.main(["--overhead"])
