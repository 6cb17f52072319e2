"""OpenVINO on the CPU, with its latency hint unless the mode says otherwise."""

MODES = {
    "throughput": "its throughput hint: several requests at once, each on its own cores",
}
