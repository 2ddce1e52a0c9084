"""A network alone. No heavy import at the top: ``eyeline --help`` reads this file."""

from __future__ import annotations

from typing import Any, Unpack

from eyeline.errors import InputError
from eyeline.names import check_names
from eyeline.runs.run import Run
from eyeline.settings import Settings, SettingsGiven
from eyeline.verbs._common import checked_arguments


@checked_arguments
def train(
    model: str | Any,
    data: str | Any,
    out: str | None = None,
    *,
    pretrained: bool = False,
    weights: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    **settings: Unpack[SettingsGiven],
) -> Run:
    """Train a network alone, from labels: a teacher, or a baseline.

    Args:
        model: a timm name, torchvision/NAME, wrn_16_1, a run folder, or (in Python) an nn.Module
        data: fashion_mnist, fashion_mnist_sample, cifar10, cifar100, folder:PATH, or (in Python) a data set
        out: folder of the run (default: under runs/)
        pretrained: start from the published weights
        weights: checkpoint to start from (safetensors)
        resume: continue the run that is in the folder
        overwrite: replace the run that is in the folder
        settings: see below

    Returns:
        The finished run; ``run.load()`` is the network.

    Raises:
        InputError: something given cannot work; raised before training.
    """
    check_names(data=data, networks=[model])
    from eyeline.experiment.experiment import Experiment
    from eyeline.experiment.place import Place, as_begun, complete_recipe, said_of_hardware
    from eyeline.experiment.resolve import listed_data, named_student
    from eyeline.runs.card import called
    from eyeline.training.run import train_run

    asked = Settings.of(**settings)
    if asked.memory is not None:
        raise InputError("memory is for what a teacher answers; train has no teacher")
    recipe = {"model": model, "data": data, "pretrained": pretrained, "weights": weights}
    listed, load_images = listed_data(data, asked)
    named = ["train", called(model), listed.name, f"seed-{asked.seed}"]
    place = Place.of(out, named, resume=resume, overwrite=overwrite, needed=[model])
    meant = as_begun(asked, listed, place)
    experiment = Experiment(named_student(model, listed, meant, pretrained, weights), listed, meant)
    if meant.skip_bad_images:  # the data are those that are left
        experiment = experiment.later(load_images())
    complete = complete_recipe("train", recipe, meant)
    folder = place.folder(complete, experiment.inputs(), said_of_hardware(asked))
    return train_run(folder, experiment.later(load_images()))
