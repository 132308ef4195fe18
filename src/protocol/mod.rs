//! What processes say to each other: the kernel and the monitor ([`handshake`]), the monitor and its server ([`wire`]), and
//! a client of `reload` and the monitor ([`control`]).

pub mod control;
pub mod handshake;
pub mod missed;
pub mod registration;
pub mod wire;
