//! What processes say to each other: the kernel and the monitor ([`handshake`]), the monitor and its server ([`wire`]), the monitor and
//! who plays or learns for it ([`task`]), and whoever asks a monitor and that monitor ([`control`]).

pub mod control;
pub mod handshake;
pub mod missed;
pub mod registration;
pub mod task;
pub mod wire;
