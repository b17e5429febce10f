"Training on several processes: helpers for DTensors."
