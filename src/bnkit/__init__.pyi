# The public names for type checkers and editors; at run time __init__.py imports them when asked.

from bnkit import functional as functional, layers as layers
from bnkit.benchmarking import (
    Benchmark as Benchmark,
    bench as bench,
)
from bnkit.checkpoints import (
    load as load,
    save as save,
)
from bnkit.dataflow import (
    ExampleError as ExampleError,
)
from bnkit.diagnosis import (
    Diagnosis as Diagnosis,
    Finding as Finding,
    diagnose as diagnose,
)
from bnkit.experiments.comparison import (
    compare as compare,
)
from bnkit.experiments.settings import (
    Settings as Settings,
)
from bnkit.experiments.summary import (
    Comparison as Comparison,
)
from bnkit.experiments.sweep import (
    Interrupted as Interrupted,
)
from bnkit.train_eval_gap import (
    Gap as Gap,
    explain_gap as explain_gap,
)
from bnkit.kernels.choice import (
    choose_kernel as choose_kernel,
)
from bnkit.layers import (
    BatchNorm1d as BatchNorm1d,
    BatchNorm2d as BatchNorm2d,
    BatchNorm3d as BatchNorm3d,
    domain as domain,
    mask as mask,
)
from bnkit.moments import (
    Moments as Moments,
)
from bnkit.monitoring import (
    Monitor as Monitor,
)
from bnkit.parameters import (
    parameter_groups as parameter_groups,
)
from bnkit.recalibration import (
    Recalibration as Recalibration,
    adapt as adapt,
    adapted as adapted,
    recalibrate as recalibrate,
    recalibrate_ as recalibrate_,
)
from bnkit.report import (
    write_diagnosis as write_diagnosis,
    write_report as write_report,
)
from bnkit.surgery import (
    Plan as Plan,
    SurgeryError as SurgeryError,
    accelerate as accelerate,
    add as add,
    convert as convert,
    fold as fold,
    fold_pair as fold_pair,
    insert as insert,
    rebind as rebind,
    remove as remove,
    standardize as standardize,
)

__version__: str
