"""What was here is in the folder of each method now. These names work for one more release, with a warning."""

from anchorlm._lazy import lazily

__getattr__, __dir__ = lazily(
    __name__,
    {},
    moved={
        "anchorlm.defenses.alignbeam": "fit_alignbeam save_evidence",
        "anchorlm.defenses.inferaligner": "Across calibrate_inferaligner fit_inferaligner save_artifact told_cosine "
        "tradeoff_svg",
        "anchorlm.defenses.inferenceguard": "Labeled Method allowed calibrate_inferenceguard calibrated_limit "
        "fit_inferenceguard labels_needed save_calibration save_critic upper_bound",
        "anchorlm.files": "check_folder",
        "anchorlm.judging": "FluencyGrading Grader Outcome auroc",
        "anchorlm.steering": "Part PromptSets shipped_prompts",
    },
)
