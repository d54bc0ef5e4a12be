//! The data path through real TLS and sockets: devices on one side, a scripted registry on the other.

#[cfg(test)]
mod admission;
#[cfg(test)]
mod client;
#[cfg(test)]
mod content;
#[cfg(test)]
mod disk;
#[cfg(test)]
mod flights;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod rig;
#[cfg(test)]
mod script;
