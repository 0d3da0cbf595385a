"""From merged weights to what other programs load: LoRA folders, checked folders, commands."""
