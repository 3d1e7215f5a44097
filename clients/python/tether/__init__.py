"""What a worker of Tether can ask and say: `tether.worker`, `tether.job`, `tether.checkpoint`, `tether.lease`, `tether.life`."""
