//! How messages go over the wire: as prost has them, with buffers for small ones.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::ProstCodec;

/// First size of a call's two buffers, which double as messages need it. A stream keeps its buffers for as long as
/// it lasts, and a beat has some thirty bytes: with tonic's own 8 KiB ten thousand heartbeat streams have 160 MB of
/// them.
const BUFFER: usize = 1 << 8;

/// Bytes that an encoder collects before it lets others run, as tonic has it.
const YIELD: usize = 32 << 10;

/// The codec of our services: first buffers of 1 KiB.
#[derive(Debug, Clone)]
pub struct SmallCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for SmallCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for SmallCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = <ProstCodec<T, U> as Codec>::Encoder;
    type Decoder = <ProstCodec<T, U> as Codec>::Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER, YIELD))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(BUFFER, YIELD))
    }
}
