"""Run worker groups under Ray Train: scaling, preemption, clean-up."""
