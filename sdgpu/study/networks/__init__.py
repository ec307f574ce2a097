"""The paper's experiment with networks: presets, one resumable folder, all chains as one dataset."""
