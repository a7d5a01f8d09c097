"""The switches in which the paper, its released code and the textbook method differ."""

RECIPES: dict[str, dict[str, bool | int | float]] = {
    # What the paper describes, with the updates that its numbers were made with.
    "paper": {
        "train_snr": True, "restitution_weight": 0.01, "repeated_updates": True,
        "head_branches": 2,
    },
    # What the released code does: SNR stays at its initial values.
    "release": {
        "train_snr": False, "restitution_weight": 0.0, "repeated_updates": True,
        "head_branches": 2,
    },
    # The textbook method: one update per step, the four branches of DeepLab-v2.
    "standard": {
        "train_snr": True, "restitution_weight": 0.01, "repeated_updates": False,
        "head_branches": 4,
    },
}
