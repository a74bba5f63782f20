"""foveal: Qwen3-VL from pixels to text, on the machine you have."""
