"""Plans carried out by DeepSpeed: its pipeline with ZeRO-0/1, or one stage with any ZeRO level."""
