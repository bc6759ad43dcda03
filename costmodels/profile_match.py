"""Whether a profile speaks of the model and of the job that are to be planned."""

from __future__ import annotations

from costmodels.measured_profile import Profile
from costmodels.workload import JOINT, Workload
from policies.errors import Fault, InputError

PARAMS_TOLERANCE_FRAC = 0.2


def require_same_job(profile: Profile, workload: Workload) -> None:
    """Refuse jobs that the profile doesn't describe. Without a job of its own it is one of full fine-tuning.

    Raises:
        InputError: `cost-model-schedule`, `cost-model-job` or `profile-job-differs`.
    """
    job, known = workload.job, profile.job
    if job.schedule != JOINT:
        raise InputError(
            "cost-model-schedule",
            f"cost model `measured` prices the schedule `{JOINT}`, the job has `{job.schedule}`",
            hint=f"set the job's schedule to `{JOINT}`",
        )
    if known is None and not job.full:
        raise InputError(
            "cost-model-job",
            f"the profile of {profile.model_name} is one of full fine-tuning,"
            f" the job has adapter rank {job.adapter_rank}",
            hint="profile this job: `echelon profile`, or use the cost model `analytic`",
        )
    if known is None:
        return
    faults = [
        Fault(
            place=f"job.{name}", value=str(getattr(job, name)), limit=f"{getattr(known, name)}, as profiled"
        )
        for name in ("dtype", "sequence_tokens", "adapter_rank")
        if getattr(job, name) != getattr(known, name)
    ]
    if faults:
        raise InputError(
            "profile-job-differs",
            f"the profile of {profile.model_name} was measured for another job:"
            f" {', '.join(f'{fault.place} {fault.limit}, not {fault.value}' for fault in faults)}",
            faults=faults,
            hint="profile this job: `echelon profile`",
        )


def require_same_model(profile: Profile, workload: Workload) -> None:
    """Refuse a profile of another chain.

    Raises:
        InputError: `profile-model-differs`.
    """
    if profile.num_layers != workload.num_layers:
        raise InputError(
            "profile-model-differs",
            f"the profile of {profile.model_name} has {profile.num_layers} layers,"
            f" the model {workload.model_name} has {workload.num_layers}",
            hint="profile this model; embedding and loss head count as layers",
        )
    degree = min(profile.sizes)
    sizes = profile.sizes[degree]
    counted = {
        "parameters": (sizes.params_L, sum(layer.params for layer in workload.layers)),
        "trained parameters": (sizes.trained_L, sum(layer.trainable_params for layer in workload.layers)),
    }
    if profile.job is None:
        del counted["trained parameters"]
    for what, (params_L, held) in counted.items():
        params = float(params_L.sum()) * degree
        if held > 0 and abs(params / held - 1.0) > PARAMS_TOLERANCE_FRAC:
            raise InputError(
                "profile-model-differs",
                f"the profile of {profile.model_name} counts {params:,.0f} {what},"
                f" the model {workload.model_name} has {held:,}",
                hint="profile this model",
            )
